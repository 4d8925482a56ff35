"""The folder of a run: who owns it, which config it was started with, where things lie.

WORKDIR/config.json          the typed config, as it ran
WORKDIR/metrics.jsonl        one JSON object a log line: step, loss, accuracies, speeds
WORKDIR/checkpoints/STEP/    train states (Orbax)
WORKDIR/weights.safetensors  the chosen weights, with tokenizer/ beside: what `rmt_jax.load` reads
WORKDIR/results/             tables and pictures
"""

import datetime
import fcntl
import itertools
import json
import os
from pathlib import Path

from rmt_jax import config as cfg
from rmt_jax.config import Config, ConfigError
from rmt_jax.files import write_text

# Fields that may change between the start of a run and its continuation: none of them touches the
# shapes of what was saved or which batch a step sees.
FREE = ("checkpoint.", "evaluation.", "log_every", "mesh.", "data.workers", "data.babi_dir")


def new_folder() -> Path:
    """Makes runs/DATE-TIME, every run its own: runs/DATE-TIME-2 is the second one of a second."""
    name = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for number in itertools.count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError


class Workdir:
    """An owned run folder; a second run on the same folder is refused while the first lives.

    Of several processes one is the owner: it alone holds the lock and writes files.
    """

    def __init__(self, path: Path, owner: bool = True):
        self.path, self.owner = path, owner
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock" if owner else os.devnull, "a+")
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"--workdir {path} is not a folder: choose another name.") from error
        if owner:
            self._take()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            other = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ConfigError(
                f"Another run (process {other}) is writing to {self.path}: wait for it, stop it,"
                " or choose another --workdir."
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def settle(self, config: Config) -> None:
        """Writes the config of a new run, or checks that a continued one has the same.

        Raises:
          ConfigError: naming the fields that changed since the run was started.
        """
        file = self.path / "config.json"
        begun = _begun(self.path)
        if file.exists():
            was, now = cfg.fields(read_config(file)), cfg.fields(config)
            changed = [
                f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
                for name in {**now, **was}  # another number of stages is another set of names
                if was.get(name) != now.get(name) and not name.startswith(FREE)
            ]
            if changed and (begun or (self.path / "weights.safetensors").exists()):
                raise ConfigError(
                    f"{self.path} holds a run with another config ({'; '.join(changed)}): choose"
                    " another --workdir, or give the same settings to continue it."
                )
        if self.owner:
            write_text(file, json.dumps(cfg.to_dict(config), indent=1))


def config_to_continue(path: Path | None) -> Config | None:
    """The config of the run in a folder that has something to go on from; None: there is none."""
    file = path and path / "config.json"
    return read_config(file) if path and file and _begun(path) and file.exists() else None


def _begun(path: Path) -> bool:
    """A start that failed before there was anything to continue binds nobody to its settings."""
    return any(f.name.isdecimal() for f in (path / "checkpoints").glob("*"))


def read_config(file: Path) -> Config:
    """The typed config from a run's `config.json`.

    Raises:
      ConfigError: no such file, or not ours.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no {file.name} in {file.parent}: it is not a run's folder."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} is not JSON ({error}).") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} should hold an object with settings, not {tree!r:.40}.")
    return cfg.from_dict(tree)
