"""The log also as TensorBoard files or a Weights & Biases run (`--log_to tensorboard,wandb`).

`metrics.jsonl` is always written; these get the same lines, flattened to names and numbers.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rmt_jax import config as cfg
from rmt_jax.cli import split_names
from rmt_jax.config import Config, ConfigError
from rmt_jax.files import write_text


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(names: str, path: Path, config: Config) -> list[Tracker]:
    """The trackers of 'tensorboard,wandb'.

    Raises:
      ConfigError: an unknown name, or a package that is missing, with the command that installs it.
    """
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    wanted = split_names(names)
    for name in wanted:
        if name not in kinds:
            raise ConfigError(f"--log_to takes {' and '.join(kinds)}, but got '{name}'.")
    return [kinds[name](path, config) for name in wanted]


class Looks(NamedTuple):
    """What else the user wants to see of a run."""

    log_to: str = ""  # tensorboard, wandb, or both with a comma
    profile_steps: str = ""  # '20-25': a trace of these steps

    def profiled(self) -> tuple[int, int]:
        """First and last step to trace; (0, 0) for none. Raises ConfigError."""
        if not self.profile_steps:
            return 0, 0
        first, _, last = self.profile_steps.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
            raise ConfigError(
                f"--profile_steps takes the first and last step, such as 20-25, but got"
                f" '{self.profile_steps}'."
            )
        return int(first), int(last)


PLAIN = Looks()


class TensorBoard:
    """Event files in WORKDIR/tensorboard, without TensorFlow."""

    def __init__(self, path: Path, config: Config):
        self._writer = _module("tensorboardX", "tensorboard").SummaryWriter(
            str(path / "tensorboard")
        )
        self._writer.add_text("config", "\n\n".join(f"{k} = {v}" for k, v in _settings(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One run for one workdir: a continued training continues the run."""

    def __init__(self, path: Path, config: Config):
        wandb = _module("wandb", "wandb")
        kept = path / "wandb_id"
        known = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
        self._run = wandb.init(
            project="rmt_jax",
            name=path.name,
            dir=str(path),
            id=known,
            resume="allow",
            config=dict(_settings(config)),
        )
        write_text(kept, self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"accuracy": {"qa1": 0.9}} -> {"accuracy/qa1": 0.9}; what is no number is left out."""
    values: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            values[prefix + name] = float(value)
    return values


def _settings(config: Config) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in cfg.fields(config).items()]


def _module(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--log_to {name} needs the package {package}: pip install {package}."
        ) from error
