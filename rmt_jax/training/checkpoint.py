"""Checkpoints of a run: Orbax (v1 API) behind one file.

A checkpoint is there whole or not there: Orbax writes a temporary folder and renames it. It holds
the train state; the config lies beside as JSON, and the data need only the step. Once written it is
sealed with the size and checksum of each file, because nothing in the format notices a flipped bit.
"""

import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from rmt_jax import config as cfg
from rmt_jax.config import ConfigError
from rmt_jax.files import write_text
from rmt_jax.training.step import TrainState

SEAL = "rmt_seal.json"
BLOCK = 1 << 22  # bytes read at once


def _not_orbaxs_own(record: logging.LogRecord) -> bool:
    """Orbax logs a traceback a thread before it raises; `CheckpointError` says it in a sentence."""
    return not (record.exc_info and "orbax" in record.pathname)


class CheckpointError(ConfigError):
    """A checkpoint that cannot be written or read; the message says which one remains."""


class Checkpoints:
    """The checkpoints of a workdir: the last `keep` and the best on validation."""

    def __init__(self, folder: Path, settings: cfg.Checkpoint):
        logging.getLogger("absl").addFilter(_not_orbaxs_own)  # once, however often
        policies = ocp.training.preservation_policies
        self.folder = folder.absolute()
        self._aside = self.folder.with_name(f"{self.folder.name}.aside")
        self._put_back()
        self._unsealed: int | None = None
        # The training loop decides when: `save` is called for every wanted checkpoint.
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        # Typed Any: Orbax's protocols do not accept its own classes under pyright.
        keep: Any = policies.AnyPreservationPolicy(
            [
                policies.LatestN(settings.keep),
                policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        try:
            self._manager: Any = ocp.training.Checkpointer(
                str(self.folder),
                save_decision_policy=always,
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
        except Exception as error:  # a damaged file: Orbax reads what lies beside the arrays
            steps = _whole(self.folder)
            bad = [s for s in steps if broken_seal(self.folder / str(s))] or steps[-1:]
            if not bad:
                raise
            raise _unreadable(self.folder, bad[0], steps, _first_line(error)) from error

    def steps(self) -> list[int]:
        return [c.step for c in self._manager.checkpoints]

    def best(self) -> int | None:
        """The step with the highest validation score, None where nothing was validated."""
        scored = [c for c in self._manager.checkpoints if c.metrics]
        return max(scored, key=lambda c: (_score(c.metrics), c.step)).step if scored else None

    def validated(self, step: int) -> bool:
        return any(c.step == step and c.metrics for c in self._manager.checkpoints)

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing in the background; waits for an earlier one first.

        `metrics` with `score` makes it a candidate for the best.

        Raises:
          CheckpointError: this one, or the one before, could not be written.
        """
        step = int(state.step)
        self.wait()
        if step in self.steps():
            if not metrics:
                return
            # Orbax takes a score with the state alone. Killed before that is whole again, the run
            # finds the one from before.
            if jax.process_index() == 0:
                shutil.copytree(self.folder / str(step), self._aside / str(step))
            self._manager.delete(step)
        try:
            self._manager.save_async(step, state._asdict(), metrics=metrics)
        except Exception as error:  # Orbax and tensorstore raise many kinds
            raise self._unwritten(step, error) from error
        self._unsealed = step

    def wait(self) -> None:
        """Until the last checkpoint is whole on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        step, self._unsealed = self._unsealed, None
        try:
            self._manager.wait()
        except Exception as error:
            raise self._unwritten(step, error) from error
        if step is not None and jax.process_index() == 0:
            seal(self.folder / str(step))
            shutil.rmtree(self._aside, ignore_errors=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of `step` (None: the latest), laid out on devices as `like` says.

        Args:
          like: a state, or `jax.ShapeDtypeStruct`s with shardings, of the same tree.

        Raises:
          CheckpointError: it cannot be read, or is of another model; names the one before.
        """
        step = self.steps()[-1] if step is None else step
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        damage = broken_seal(self.folder / str(step))
        if damage:
            raise _unreadable(self.folder, step, self.steps(), damage)
        try:
            return TrainState(**self._manager.load(step, abstract._asdict()))
        except Exception as error:  # each of Orbax's many kinds means 'this one is unusable'
            reason = f"{_first_line(error)}; damaged, or the config changed since"
            raise _unreadable(self.folder, step, self.steps(), reason) from error

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints later than `step`."""
        self.wait()
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def _put_back(self) -> None:
        """What `save` put aside, where a kill came before the checkpoint was whole again."""
        if jax.process_index() == 0:
            for kept in self._aside.glob("*"):
                if not (self.folder / kept.name).exists():
                    kept.rename(self.folder / kept.name)
            shutil.rmtree(self._aside, ignore_errors=True)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    def _unwritten(self, step: int | None, error: Exception) -> CheckpointError:
        whole = [s for s in _whole(self.folder) if s != step]
        rest = (
            f"The last whole one is of step {whole[-1]:,}: make room, and the same command goes on"
            " from there."
            if whole
            else "There is no earlier one."
        )
        return CheckpointError(
            f"The checkpoint of step {step:,} could not be written to {self.folder}"
            f" ({_first_line(error)}). {rest}"
        )


def _unreadable(folder: Path, step: int, steps: list[int], reason: str) -> CheckpointError:
    earlier = [s for s in steps if s < step]
    way_out = (
        f"delete {folder / str(step)} and the same command goes on from step {earlier[-1]:,}, whose"
        " checkpoint is beside it"
        if earlier
        else "there is no earlier one: start in a new --workdir"
    )
    return CheckpointError(
        f"The checkpoint {folder / str(step)} cannot be restored ({reason}): {way_out}."
    )


def seal(folder: Path) -> None:
    """Notes the size and checksum of each file of a checkpoint."""
    if folder.is_dir():
        write_text(
            folder / SEAL, json.dumps({name: _sum(folder / name) for name in _files(folder)})
        )


def broken_seal(folder: Path) -> str:
    """What differs from the seal, in words; '' where nothing does, or there is no seal (the run
    was killed between writing and sealing)."""
    file = folder / SEAL
    if not file.is_file():
        return ""
    try:
        sealed = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return f"{SEAL} is not JSON"
    for name, (size, checksum) in sealed.items():
        if not (folder / name).is_file():
            return f"its file {name} is missing"
        now, sum_now = _sum(folder / name)
        if now != size:
            return f"its file {name} has {now:,} bytes and was written with {size:,}"
        if sum_now != checksum:
            return f"its file {name} changed since it was written"
    return ""


def _sum(file: Path) -> list[int]:
    size = checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def _files(folder: Path) -> list[str]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.endswith(".tmp"))
    return [f.relative_to(folder).as_posix() for f in files if f.name != SEAL]


def _whole(folder: Path) -> list[int]:
    """Steps on disk, whatever Orbax remembers: after a failed save its list may name it."""
    return sorted(int(f.name) for f in folder.glob("*") if f.name.isdecimal())


def _score(metrics: Any) -> float:
    return float(metrics["score"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
