"""How far a batch of texts has been read: kept every so often, so that an evaluation that was
stopped goes on in the middle of its texts."""

import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from rmt_jax.files import atomic_open
from rmt_jax.models.cells import Memory

SECONDS = 60.0  # between two times that the memory is kept
SHARE = 0.02  # of the time, at most, that keeping it takes


class KeptReading:
    """The memory of a batch of texts, and how many of their segments it has read, in a file.

    Args:
      file: where it is kept.
      key: all that the memory depends on. What is there under another key is overwritten.
      on_found: called with the number of tokens that need not be read again.
    """

    def __init__(self, file: Path, key: str, on_found: Callable[[int], None]):
        self.file, self.on_found, self._key = file, on_found, key
        self._due = time.monotonic() + SECONDS

    def load(self, initial: Memory) -> tuple[int, Memory]:
        """Segments that have been read, and the memory after them; 0 and `initial`, where nothing
        of use was kept."""
        leaves, shape = jax.tree.flatten(initial)
        try:
            with open(self.file, "rb") as file, np.load(file, allow_pickle=False) as kept:
                about = json.loads(str(kept["about"]))
                if about["key"] != self._key:
                    return 0, initial
                found = [kept[f"memory{i}"] for i in range(len(leaves))]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return 0, initial  # nothing there, or not such a file
        return about["segments"], jax.tree.unflatten(shape, found)

    def keep(self, segments: int, memory: Memory) -> None:
        """Writes the memory after so many segments."""
        begun = time.monotonic()
        arrays = {f"memory{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(memory))}
        about = np.array(json.dumps({"key": self._key, "segments": segments}))
        with atomic_open(self.file, binary=True) as file:
            np.savez(file, allow_pickle=False, about=about, **arrays)
            file.flush()
            os.fsync(file.fileno())
        now = time.monotonic()
        self._due = now + max(SECONDS, (now - begun) / SHARE)

    def keep_if_due(self, segments: int, memory: Memory) -> None:
        """`keep`, where the last time is long enough ago."""
        if time.monotonic() >= self._due:
            self.keep(segments, memory)

    def forget(self) -> None:
        """Deletes the file: the answers are there."""
        self.file.unlink(missing_ok=True)
