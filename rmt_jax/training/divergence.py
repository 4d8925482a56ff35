"""When training goes wrong by itself: notice it, go back to the last good checkpoint, and try again
with a lower learning rate, a bounded number of times. A data worker that died is started anew."""

import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from rmt_jax.config import ConfigError
from rmt_jax.errors import RmtError
from rmt_jax.files import write_text

SHARED_MEMORY = (
    "Make room in /dev/shm (in a container: docker run --shm-size=1g), or lower"
    " config.data.workers; 0 makes batches in a thread."
)
TRIES = 3
FACTOR = 0.5  # of the learning rate, at each try
# A collapse is no noise: the loss must be three times the stage's best and a nat above it, for
# five log lines on end, not in the first twenty of a stage, whose new tasks and longer texts move
# it. (From a loss of 0.5, guessing among six places is 1.8.)
TIMES, NATS, LINES, EARLY = 3.0, 1.0, 5, 20


class Diverged(Exception):
    """Training went wrong at `step`; `good` is the last step known to be sound."""

    def __init__(self, step: int, good: int, reason: str):
        super().__init__(f"step {step:,}: {reason}")
        self.step, self.good, self.reason = step, good, reason


class Watch:
    """Sees every logged loss, and raises `Diverged`."""

    def __init__(self, step: int):
        self._good, self._stage, self._seen = step, -1, 0
        self._best, self._bad = math.inf, 0

    @property
    def suspicious(self) -> bool:
        """Did the last line look like a collapse? A checkpoint now might push out a sound one."""
        return self._bad > 0

    def see(self, step: int, stage: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(step, self._good, f"the loss is {loss}")
        if stage != self._stage:
            self._stage, self._best, self._bad, self._seen = stage, math.inf, 0, 0
        self._seen += 1
        if self._seen > EARLY and loss > max(TIMES * self._best, self._best + NATS):
            self._bad += 1
            if self._bad >= LINES:
                raise Diverged(
                    step,
                    self._good,
                    f"stage {stage + 1} collapsed (loss {loss:.2f}, was {self._best:.2f})",
                )
        else:
            self._bad, self._good = 0, step
            self._best = min(self._best, loss) if self._seen > EARLY else math.inf


class Rescues:
    """The rescues of a run, in WORKDIR/rescues.json, so that a continued run keeps its rate."""

    def __init__(self, folder: Path, write: bool = True):
        self._file, self._write = folder / "rescues.json", write
        try:
            self._past: list[dict] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._past = []
        except ValueError as error:
            raise ConfigError(
                f"{self._file} is not JSON ({error}): delete it to forget past rescues."
            ) from error

    @property
    def scale(self) -> float:
        """What the config's learning rates are multiplied with."""
        return FACTOR ** len(self._past)

    def add(self, trouble: Diverged) -> str:
        """Notes a rescue; returns what to tell the user.

        Raises:
          ConfigError: that was one too many.
        """
        if len(self._past) >= TRIES:
            raise ConfigError(
                f"Training diverged at {trouble}, for the {TRIES + 1}th time, now at"
                f" {self.scale:g} times the learning rate: lower the learning_rate of config.stages"
                " or raise config.optimizer.warmup in a new --workdir. The checkpoints before it"
                " are kept."
            )
        self._past.append({"step": trouble.step, "good": trouble.good, "reason": trouble.reason})
        if self._write:
            write_text(self._file, json.dumps(self._past, indent=1))
        return (
            f"{trouble}. Going back to the last checkpoint up to step {trouble.good:,} with"
            f" {self.scale:g} times the learning rate (try {len(self._past)} of {TRIES})"
        )


def batches(
    stream: Callable[[int], Iterator], step: int, say: Callable[[str], None], tries: int = TRIES
) -> Iterator:
    """The batches of `stream(step)`; begun anew where it broke when a worker process died, which
    changes nothing: data are a function of the step.

    Raises:
      ConfigError: that happened more than `tries` times, or no batch can be made as configured.
    """
    deaths = 0
    while True:
        try:
            for batch in stream(step):
                yield batch
                step += 1
            return
        except RmtError as error:
            raise ConfigError(f"The batch of step {step + 1:,} cannot be made: {error}") from error
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            raise ConfigError(
                f"The batch of step {step + 1:,} finds no room: with config.data.workers batches"
                f" are handed over in shared memory. {SHARED_MEMORY}"
            ) from error
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            deaths += 1
            if deaths > tries:
                raise ConfigError(
                    f"Data workers died {deaths} times, the last before step {step + 1:,}"
                    f" (killed for memory, or shared memory is full?). {SHARED_MEMORY}"
                ) from error
            say(f"a data worker died before step {step + 1:,}: starting the workers again")
