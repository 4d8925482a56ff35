"""What a person sees while it trains: a bar, and `metrics.jsonl` for the curves."""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rmt_jax.cli import progress_bar
from rmt_jax.files import naming
from rmt_jax.training.trackers import Tracker, flat

log = logging.getLogger(__name__)


class Progress:
    """A bar over the curriculum's tokens (stages differ in tokens a step, so steps would lie about
    the time left), and one JSON line a log."""

    def __init__(
        self,
        file: Path,
        total_tokens: int,
        done_tokens: int,
        owner: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        self._trackers = trackers if owner else ()
        # Of several processes only the owner writes and shows.
        self._file = open(file if owner else os.devnull, "a", encoding="utf-8", buffering=1)
        if owner and torn(file):  # the line that a full disk or a kill cut off ends here
            self._file.write("\n")
        self._bar = progress_bar(
            total_tokens,
            "tok",
            shown=owner,
            initial=done_tokens,
            unit_scale=True,
            bar_format="{percentage:3.0f}% |{bar:16}| {desc} [{elapsed}<{remaining}, {rate_fmt}]",
        )
        self._start = time.monotonic()

    def advance(self, tokens: int) -> None:
        self._bar.update(tokens)

    def log(self, record: dict) -> None:
        """Writes one line and shows it: `record` has step, stage, loss and accuracies."""
        record = {"seconds": round(time.monotonic() - self._start, 2), **record}
        with naming(self._file.name):
            self._file.write(json.dumps(record) + "\n")
        if self._trackers:
            values = flat({k: v for k, v in record.items() if k != "step"})
            for tracker in self._trackers:
                tracker.log(record["step"], values)
        if "loss" in record:
            shown = " ".join(f"{k} {100 * v:.0f}" for k, v in record["accuracy"].items())
            shown += "".join(
                f" {k} {v:.3f} nats" for k, v in record.get("nats_per_token", {}).items()
            )
            if "mfu" in record:
                shown += f" MFU {100 * record['mfu']:.0f}%"
            self._bar.set_description_str(
                f"step {record['step']} stage {record['stage']} loss {record['loss']:.3f} {shown}",
                refresh=False,
            )

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if not self._bar.disable:
            log.info("%s", text)

    def close(self) -> None:
        self._bar.close()
        self._file.close()


def torn(file: Path) -> bool:
    """Does the file end in the middle of a line?"""
    with open(file, "rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"
