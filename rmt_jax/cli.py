"""From the command line to the typed config, and what every command shares: errors, log, bar.

`--config FILE[:PRESET]` runs the file's `get_config(preset)` (`config/files.py`);
`--config.section.field=value` then sets any field. CONTRIBUTING.md says why this is no library's.
"""

import argparse
import ast
import dataclasses
import errno
import inspect
import io
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin

from rmt_jax.config import (
    Config,
    Setting,
    describe,
    import_extensions,
    settings,
    to_dict,
    update,
)
from rmt_jax.config.files import bundled, load_config
from rmt_jax.config.schema import LARGEST_SEED
from rmt_jax.errors import RmtError
from rmt_jax.validation import validate

Tree = TypeVar("Tree")  # a config, or another dataclass of settings
MODULES = "python -m rmt_jax."
INDENT = 34  # columns of a field's name and value in --help


class Usage(RmtError):
    """A command line that cannot work; the message is a sentence for the user."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours to print, which takes `--out=~/a` as a shell gives it
    `--out ~/a`, and whose usage says `rmt-jax NAME` where the command was started so."""

    program = MODULES  # what stands before a command's name in its usage

    def __init__(self, **options: Any):
        if "prog" in options:
            options["prog"] = options["prog"].replace(MODULES, self.program, 1)
        super().__init__(**options)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_home(token) for token in given], namespace)

    def error(self, message: str):
        raise Usage(f"{message[0].upper()}{message[1:]}. --help shows what there is.")


def split_names(text: str) -> list[str]:
    """The names in a list with commas between, and blanks where anybody likes them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seed(text: str) -> int:
    """argparse's type of a seed."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f"a seed is a whole number between 0 and {LARGEST_SEED}, but got '{text}'"
        )
    return int(text)


def parse_overrides(tokens: list[str], section: str = "config") -> dict[str, object]:
    """`--config.a.b=value` and `--config.a.b value` as `{"a.b": value}`."""
    values: dict[str, object] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.removeprefix(f"--{section}.").partition("=")
        if not token.startswith(f"--{section}."):
            raise Usage(f"Unknown argument '{token}'. --help shows what there is.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise Usage(f"'{token}' needs a value: {token}=VALUE.")
            text = rest.pop(0)
        values[name] = text
    return values


def apply_overrides(config: Tree, texts: Mapping[str, object]) -> Tree:
    """A config, or another tree of settings, with the fields that a command line names set. Raises
    ConfigError."""
    return update(config, texts, read=_value)


def parse(argv: list[str], doc: str) -> tuple[Config, argparse.Namespace]:
    """The validated config and the other arguments of a training command line."""
    parser = Parser(
        prog=f"{MODULES}train",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:PRESET]",
        help=f"e.g. mine.py, or one that comes with rmt_jax: {', '.join(bundled())}; multitask:gpt2"
        " is a preset of it",
    )
    parser.add_argument("--workdir", help="where everything is written (default: runs/DATE-TIME)")
    parser.add_argument("--log_to", default="", help="tensorboard, wandb, or both with a comma")
    parser.add_argument("--profile_steps", default="", help="e.g. 20-25: a trace of these steps")
    parser.add_argument("--help", "-h", action="store_true", help="this text, with every field")
    known, rest = parser.parse_known_args(argv)
    if known.help:
        config = load_config(known.config) if known.config else Config()
        print(parser.format_help())
        print(f"Fields, --config.NAME=VALUE, with their values in {known.config or 'Config()'}:")
        print(describe_fields(config, shutil.get_terminal_size().columns))
        sys.exit(0)
    if not known.config:
        raise Usage("--config is missing, e.g. --config multitask.")
    config = apply_overrides(load_config(known.config), parse_overrides(rest))
    import_extensions(config)
    validate(config)
    return config, known


def describe_fields(config: Any, columns: int, top: str = "the run:") -> str:
    """Every field with its value, help, unit and choices, grouped by section and wrapped. Of the
    stages after the first, values alone."""
    lines: list[str] = []
    last = None
    for name, value, about in settings(config):
        section = name.rpartition(".")[0]
        if section != last:
            heading = top
            if section:
                about_section = _section_setting(type(config), section.split("."))
                heading = f"{section}: {about_section.help}"
            lines += ["", heading]
            last = section
        left = f"  {name}={_show(value)}"
        again = section.startswith("stages.") and section != "stages.0"
        right = (
            []
            if again
            else textwrap.wrap(_help(about), max(24, columns - INDENT), break_on_hyphens=False)
        )
        if right and len(left) < INDENT - 1:
            left = f"{left:{INDENT}}{right.pop(0)}"
        lines += [left, *(" " * INDENT + text for text in right)]
    return "\n".join(lines)


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> None:
    """Runs a command's `main(argv) -> exit code`. An expected error is one sentence, not a
    traceback, and exit code 2."""
    open_streams()
    log_to_stderr()
    try:
        sys.exit(main(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (RmtError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(f"error: {error}{': make room there' if full else ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        sys.exit(130)


def open_streams() -> None:
    """Standard streams that a caller closed (`2>&-`, `<&-`) lead nowhere from here on: without them
    the next file that is opened would take their number. What a stream's encoding lacks is
    written as `\\u2026`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def log_to_stderr() -> None:
    """Shows what the library says while it works (the logger 'rmt_jax'), as plain lines."""
    log = logging.getLogger("rmt_jax")
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        log.addHandler(_StderrHandler())
        log.setLevel(logging.INFO)
        log.propagate = False  # a root handler of another library would print it again


def progress_bar(total: float | None, unit: str, shown: bool = True, **options: Any) -> Any:
    """A tqdm bar on standard error; a line every 30 seconds where that is no terminal.

    Args:
      total: of `unit`s; None where it is not known.
      options: tqdm's own.
    """
    from tqdm import tqdm

    defaults = {"dynamic_ncols": True, "mininterval": 1.0 if sys.stderr.isatty() else 30.0}
    shared = {"total": total, "unit": unit, "disable": not shown, "file": sys.stderr}
    return tqdm(**shared, **(defaults | options))


def restart_clock(bar: Any) -> None:
    """What a bar did up to here counts no more into its rate: its programs were compiled meanwhile.
    (For bars with `smoothing=0`, whose rate is the mean since their start.)"""
    bar.initial = bar.n
    bar.start_t = bar.last_print_t = time.time()


def summary(module: object) -> str:
    return inspect.getdoc(module) or ""


class _StderrHandler(logging.Handler):
    """Messages alone, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        module = sys.modules.get("tqdm")
        if module is None:
            print(self.format(record), file=sys.stderr)
        else:
            module.tqdm.write(self.format(record), file=sys.stderr)


def _home(token: str) -> str:
    """A word of a command line with the `~` of a path written out."""
    match = re.match(r"(--[\w.-]+=)?(?=~)", token)
    return token[: match.end()] + os.path.expanduser(token[match.end() :]) if match else token


def _value(given: object, kind: Any) -> object:
    """A command line's text as a value for a field of type `kind`."""
    text = str(given).strip()
    if kind is str:
        return str(given)
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if get_origin(kind) is tuple and get_args(kind)[0] in (str, int, float):
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        # A list of texts stays one where its items look like numbers ('300' tokens).
        texts = get_args(kind)[0] is str
        return [part.strip("'\"") if texts else _literal(part) for part in parts]
    if get_origin(kind) is Mapping and not text:
        return {}
    value = _literal(text)
    return text if kind in (int, float) and not isinstance(value, (int, float)) else value


def _literal(text: str) -> object:
    """A number, or what JSON or Python writes as a list or an object; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError):
            continue
    return text.strip()


def _section_setting(cls: type, names: list[str]) -> Setting:
    """What the deepest field of 'data.questions.tickets' that a class declares says."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    made = fields[names[0]].default_factory
    if len(names) > 1 and isinstance(made, type):  # a section, made by its class
        return _section_setting(made, names[1:])
    return describe(cls, names[0])


def _help(about: Setting) -> str:
    parts = [about.unit, " | ".join(about.choices), about.limits()]
    details = "; ".join(part for part in parts if part)
    return f"{about.help} [{details}]" if details else about.help


def _show(value: object) -> str:
    """As the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and all(isinstance(v, (str, int, float)) for v in value):
        return ",".join(map(str, value))
    if isinstance(value, (tuple, Mapping)):
        return json.dumps(to_dict(value))
    return str(value)
