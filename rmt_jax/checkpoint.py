"""Checkpoints of a run: Orbax (v1 API) behind one file.

A checkpoint is there whole or not there: Orbax writes a temporary folder and renames it. It holds
the train state; the config lies beside as JSON, and the data need only the step.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from rmt_jax import config as cfg
from rmt_jax.config import ConfigError
from rmt_jax.steps import TrainState


class Checkpoints:
    """The checkpoints of a workdir: the last `keep` and the best on validation."""

    def __init__(self, folder: Path, settings: cfg.Checkpoint):
        policies = ocp.training.preservation_policies
        self.folder = folder
        self._manager = ocp.training.Checkpointer(
            folder,
            # The training loop decides when: `save` is called for every wanted checkpoint.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(settings.keep),
                    policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        return [c.step for c in self._manager.checkpoints]

    def best(self) -> int | None:
        """The step with the highest validation score, None where nothing was validated."""
        scored = [c for c in self._manager.checkpoints if c.metrics]
        return max(scored, key=lambda c: (_score(c.metrics), c.step)).step if scored else None

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing in the background; waits for an earlier one first.

        `metrics` with `score` makes it a candidate for the best.
        """
        step = int(state.step)
        if step in self.steps():
            if not metrics:
                return
            self._manager.wait()
            self._manager.delete(step)
        self._manager.save_async(step, state._asdict(), metrics=metrics)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state of `step` (None: the latest), laid out on devices as `like` says.

        Args:
          like: a state, or `jax.ShapeDtypeStruct`s with shardings, of the same tree.

        Raises:
          ConfigError: the checkpoint cannot be read, or is of another model; names the one before.
        """
        step = self.steps()[-1] if step is None else step
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        try:
            return TrainState(**self._manager.load(step, abstract._asdict()))
        except Exception as error:  # Orbax raises many kinds: each means 'this one is unusable'
            earlier = [s for s in self.steps() if s < step]
            way_out = (
                f"delete {self.folder / str(step)} to go on from step {earlier[-1]}"
                if earlier
                else "start in a new --workdir"
            )
            first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
            raise ConfigError(
                f"The checkpoint {self.folder / str(step)} cannot be restored"
                f" ({type(error).__name__}: {first}). Either it is damaged or the config changed"
                f" since it was written: {way_out}."
            ) from error

    def wait(self) -> None:
        self._manager.wait()

    def close(self) -> None:
        self._manager.close()


def _score(metrics: Any) -> float:
    return float(metrics["score"])
