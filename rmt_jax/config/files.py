"""Config files: Python with a `get_config(preset)`, a user's own or one that the package brings.

The package's own are the files of the checkout's `configs/`; a wheel has them as `rmt_jax/configs`.
They have names without a path: `multitask:gpt2` is preset `gpt2` of `multitask.py`.
"""

import re
import runpy
import sys
from pathlib import Path

from rmt_jax.config.schema import Config
from rmt_jax.config.tree import from_dict, to_dict
from rmt_jax.errors import ConfigError, RmtError

PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """The config files that come with the package, by name."""
    inside = PACKAGE / "configs"  # of a wheel; a checkout has the folder beside the package
    folder = inside if inside.is_dir() else PACKAGE.with_name("configs")
    return {file.stem: file for file in sorted(folder.glob("[a-z]*.py"))}


def find(spec: str) -> tuple[Path, str]:
    """The file and the preset ('' for its default one) that `FILE[:PRESET]` names, where FILE is a
    path or the name of a bundled file. Raises ConfigError."""
    path, _, preset = spec.partition(".py:")
    path = path if not preset and not spec.endswith(".py:") else path + ".py"
    if Path(path).is_file():
        return Path(path), preset
    known = bundled()
    if (bare := re.fullmatch(r"([A-Za-z]\w*)(?::([\w-]*))?", spec)) and bare[1] in known:
        own, found = Path(f"{bare[1]}.py"), known[bare[1]]
        if own.is_file() and not own.samefile(found):
            raise ConfigError(
                f"'{bare[1]}' is {own} in {Path.cwd()} and also a config that comes with rmt_jax:"
                f" write {own}{_colon(bare[2])} for the first, {found}{_colon(bare[2])} for the"
                " second."
            )
        return found, bare[2] or ""
    raise ConfigError(
        f"There is no config file '{path}' (looked in {Path.cwd()}). Give a path such as mine.py,"
        f" mine.py:PRESET for a preset, or a config that comes with rmt_jax: {', '.join(known)};"
        " multitask:gpt2, for one."
    )


def load_config(spec: str) -> Config:
    """The config that `FILE[:PRESET]` names. The folder of a file of the user's own is appended to
    `sys.path`, so that modules beside it can be imported, by the file or as `config.imports`.

    Raises:
      ConfigError: no such file, no `get_config` in it, or no such preset.
    """
    file, preset = find(spec)
    folder = str(file.resolve().parent)
    if folder not in sys.path and file not in bundled().values():
        sys.path.append(folder)
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise ConfigError(f"{file} has no function get_config(), so it is not a config file.")
        config = get_config(preset) if preset else get_config()
    except RmtError:
        raise
    except Exception as error:  # the file is the user's own code
        raise ConfigError(
            f"{file} does not run as a config file ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() in {file} returned {type(config).__name__}, not a Config.")
    return from_dict(to_dict(config))  # which checks every type


def _colon(preset: str | None) -> str:
    return f":{preset}" if preset else ""
