"""The doorway from the command line to the typed config.

`--config FILE[:PRESET]` runs the file's `get_config(preset)`; `--config.section.field=value` then
sets any field. (ml_collections' flags would need a mutable twin of the tree and read `sys.argv`
themselves; the dataclasses know their types and give the errors we want.)
"""

import argparse
import ast
import inspect
import runpy
import sys
from pathlib import Path

from rmt_jax.config import Config, ConfigError, fields, update
from rmt_jax.validation import validate


class Usage(Exception):
    """A command line that cannot work; the message is a sentence for the user."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours to print."""

    def error(self, message: str):
        raise Usage(f"{message[0].upper()}{message[1:]}. --help shows what there is.")


def load_config(spec: str) -> Config:
    """The config that `FILE[:PRESET]` names.

    Raises:
      ConfigError: no such file, no `get_config` in it, or no such preset.
    """
    path, _, preset = spec.partition(".py:")
    path = path if not preset and not spec.endswith(".py:") else path + ".py"
    file = Path(path)
    if not file.is_file():
        # An installed package carries no configs/ folder beside the user's working directory.
        raise ConfigError(
            f"There is no config file '{path}' (looked in {Path.cwd()}): give a path such as"
            " configs/multitask.py, or configs/multitask.py:gpt2 for a preset."
        )
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise ConfigError(f"{path} has no function get_config(), so it is not a config file.")
        config = get_config(preset) if preset else get_config()
    except ConfigError:
        raise
    except Exception as error:  # the file is the user's own code
        raise ConfigError(
            f"{path} does not run as a config file ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() in {path} returned {type(config).__name__}, not a Config.")
    return config


def parse_overrides(tokens: list[str]) -> dict[str, object]:
    """`--config.a.b=value` and `--config.a.b value` as `{"a.b": value}`."""
    values: dict[str, object] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.removeprefix("--config.").partition("=")
        if not token.startswith("--config."):
            raise Usage(f"Unknown argument '{token}'. --help shows what there is.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise Usage(f"'{token}' needs a value: {token}=VALUE.")
            text = rest.pop(0)
        values[name] = text
    return values


def apply_overrides(config: Config, texts: dict[str, object]) -> Config:
    known = fields(config)
    return update(config, {n: _value(str(t), known.get(n)) for n, t in texts.items()})


def parse(argv: list[str], doc: str) -> tuple[Config, argparse.Namespace]:
    """The validated config and the other arguments of a training command line."""
    parser = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--config", metavar="FILE[:PRESET]", help="e.g. configs/multitask.py:gpt2")
    parser.add_argument("--workdir", help="where everything is written (default: runs/DATE-TIME)")
    parser.add_argument("--log_to", default="", help="tensorboard, wandb, or both with a comma")
    parser.add_argument("--profile_steps", default="", help="e.g. 20-25: a trace of these steps")
    parser.add_argument("--help", "-h", action="store_true", help="this text, with every field")
    known, rest = parser.parse_known_args(argv)
    if known.help:
        config = load_config(known.config) if known.config else Config()
        print(parser.format_help())
        print(f"fields (--config.NAME=VALUE) and their values in {known.config or 'Config()'}:")
        for name, value in fields(config).items():
            print(f"  {name:32} {_show(value)}")
        sys.exit(0)
    if not known.config:
        raise Usage("--config is missing, e.g. --config configs/multitask.py.")
    config = apply_overrides(load_config(known.config), parse_overrides(rest))
    validate(config)
    return config, known


def run(main, argv: list[str] | None = None) -> None:
    """Runs a command's `main(argv) -> exit code`; an expected error is one sentence, not a
    traceback."""
    try:
        sys.exit(main(sys.argv[1:] if argv is None else argv))
    except (ConfigError, Usage, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        sys.exit(130)


def summary(module: object) -> str:
    return inspect.getdoc(module) or ""


def _value(text: str, like: object) -> object:
    """A command line's text as a Python value of the kind that the field holds."""
    if isinstance(like, str):
        return text
    if isinstance(like, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(like, tuple):
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        # A list of texts stays one where its items look like numbers ('300' tokens, '0' questions).
        texts = bool(like) and isinstance(like[0], str)
        return [part.strip("'\"") if texts else _literal(part) for part in parts]
    return _literal(text)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
