"""Every command of rmt_jax, as `rmt-jax NAME …` or `python -m rmt_jax NAME …`.

They are the same as `python -m rmt_jax.NAME …`.
"""

import difflib
import importlib
import importlib.metadata
import sys
import textwrap
from pathlib import Path

from rmt_jax import cli
from rmt_jax.config import SHIPPED
from rmt_jax.config.files import bundled

# What each does.
COMMANDS = {
    "train": "train a model, from a config to a table of results",
    "evaluate": "ask a trained model many questions about long texts, and score the answers",
    "ask": "read a text of any size, and answer questions about it",
    "prepare": "write a data set to disk, or download one",
    "convert": "import, export and average checkpoints",
    "gating": "teach the gates of a memory to stay shut over background",
    "doctor": "what this machine has and lacks; what a training would take",
    "report": "several runs side by side",
    "lmeval": "lm-evaluation-harness with our checkpoints",
}
EXAMPLES = """\
  {0} ask --file book.txt --question 'Where is Mary?'
  {0} train --config multitask --workdir runs/mine
  {0} evaluate --workdir runs/mine --lengths 1k,16k
"""


def main(argv: list[str]) -> int:
    program = "rmt-jax" if Path(sys.argv[0]).stem == "rmt-jax" else "python -m rmt_jax"
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage(program))
        return 0
    if argv[0] == "--version":
        print(f"rmt_jax {version()}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise cli.Usage(
            f"There is no command '{name}': choose {', '.join(COMMANDS)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    cli.Parser.program = f"{program} "
    module = "report.__main__" if name == "report" else name
    return importlib.import_module(f"rmt_jax.{module}").main(rest)


def version() -> str:
    try:
        return importlib.metadata.version("rmt_jax")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"


def usage(program: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"usage: {program} COMMAND [ARGUMENTS]",
        "",
        "Recurrent Memory Transformer in JAX.",
        "",
    ]
    lines += [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    lines += ["", f"{program} COMMAND --help says more. {program} --version says which this is."]
    shipped = (
        f"Configs that come with it: {', '.join(bundled())} (multitask:gpt2 is a preset of one)."
        f" Models that come with it: {', '.join(SHIPPED)}."
    )
    lines += ["", *textwrap.wrap(shipped, 88, break_on_hyphens=False)]
    return "\n".join([*lines, "", "For example:", EXAMPLES.format(program).rstrip()])


def run() -> None:
    """The console command."""
    cli.run(main)


if __name__ == "__main__":
    run()
