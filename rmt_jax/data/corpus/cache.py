"""Arrays on disk that are made once and mapped: the cache of tokenised texts."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.files import cache_errors


def build(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes `folder` where there is none: `write` fills a folder beside it, which is then renamed.
    A killed run leaves nothing half done, and of two runs at once the first to finish wins.

    Raises CacheError where the cache cannot be written, and whatever `write` raises.
    """
    if folder.is_dir():
        return
    with cache_errors(folder.parent):
        _build(folder, write)


def _build(folder: Path, write: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        made = Path(name) / "made"
        made.mkdir()
        write(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """The narrowest type that holds all of its ids."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 65536 else np.int32)


def map_array(path: Path, kind: np.dtype) -> np.ndarray:
    """A file of numbers, mapped from disk."""
    if not path.stat().st_size:
        return np.zeros(0, kind)
    return np.memmap(path, kind, mode="r")
