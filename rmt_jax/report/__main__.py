"""Several runs side by side.

    python -m rmt_jax.report RUN [RUN …] [--names a,b] [--groups a,a] [--references] [--out DIR]
    python -m rmt_jax.report RUN [RUN …] --capacity [--out DIR]
    python -m rmt_jax.report --history [ID …] [--out DIR]

RUN is a folder with a `summary.json`. Runs of one group (seeds, say) are also averaged: mean ±
standard deviation. With --capacity also accuracy against the number of facts in a text, and the
most facts kept against the size of the memory; runs of one memory cell and size are a group.
--history lists the runs behind docs/findings.md; with their ids it writes their configs, logs and
learning curves. `--history ID --add RUN` puts a run among them.
"""

from collections.abc import Sequence
from pathlib import Path

from rmt_jax import cli
from rmt_jax.files import write_text
from rmt_jax.report import ReportError, capacity, comparison, history, main_rule, read, reference
from rmt_jax.results import EvalResult
from rmt_jax.scores import NAMES


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m rmt_jax.report", description="Several runs side by side, and their spread."
    )
    parser.add_argument("runs", nargs="*", help="folders with a summary.json, or ids of --history")
    parser.add_argument("--names", default="", help="a name for each run, with commas between")
    parser.add_argument(
        "--groups", default="", help="one group per run: seeds of one setting share one"
    )
    parser.add_argument("--references", action="store_true", help="published curves behind ours")
    parser.add_argument("--capacity", action="store_true", help="facts that memories hold")
    parser.add_argument("--history", action="store_true", help="the runs behind docs/findings.md")
    parser.add_argument("--add", default="", metavar="RUN", help="a folder to put among them")
    parser.add_argument("--score", default="", choices=("", *NAMES), help="of table and curves")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write to")
    args = parser.parse_args(argv)
    if args.history:
        return _show_history(args.runs, args.out, args.add)
    if args.add:
        raise ReportError("--add puts a run among those of --history: say --history ID --add RUN.")
    if not args.runs:
        raise ReportError("Name one folder or more that have a summary.json: RUN/results, say.")
    args.runs = [Path(folder) for folder in args.runs]
    runs = [read(folder) for folder in args.runs]
    names = _one_each(args.names, args.runs, "--names")
    groups = _one_each(args.groups, args.runs, "--groups") if args.groups else names
    shown = [r for run in runs for r in run if not r.perturb]
    if not shown:
        raise ReportError(
            "These runs hold answers to perturbed texts only, which stand in a table of their own "
            f"({args.runs[0] / 'table.md'}): name folders with unperturbed ones."
        )
    rule = main_rule(shown, args.score)
    grouped: dict[str, list[Sequence[EvalResult]]] = {}
    for group, run in zip(groups, runs, strict=True):
        grouped.setdefault(group, []).append(run)
    args.out.mkdir(parents=True, exist_ok=True)
    text = comparison.comparison_table(grouped, rule)
    write_text(args.out / "comparison.md", text)
    published = reference() if args.references else []
    paths = comparison.comparison_curves(
        grouped, args.out / "comparison.png", rule=rule, references=published
    )
    if args.capacity:
        named = grouped if args.names or args.groups else capacity.by_memory(runs)
        held = capacity.capacity_table(named, rule)
        write_text(args.out / "capacity.md", held)
        paths += capacity.capacity_curves(named, args.out / "capacity.png", rule=rule)
        text += f"\n{held}"
    print(text)
    print("written:", ", ".join(str(p) for p in [args.out / "comparison.md", *paths]))
    return 0


def _show_history(names: Sequence[str], out: Path, folder: str) -> int:
    if folder:
        if len(names) != 1:
            raise ReportError(f"--add takes one id, but got {len(names)}: --history ID --add RUN.")
        history.add(names[0], Path(folder))
        print(f"written: {history.FILE}; a row for {names[0]} in experiments.csv is yours to write")
    elif names:
        print("written:", ", ".join(str(p) for p in history.draw(names, out)))
    else:
        print(history.table())
    return 0


def _one_each(text: str, runs: Sequence[Path], option: str) -> list[str]:
    if not text:
        return [str(r) for r in runs]
    names = [n.strip() for n in text.split(",")]
    if len(names) != len(runs):
        raise ReportError(f"{option} has {len(names)} names for {len(runs)} runs: give one each.")
    return names


if __name__ == "__main__":
    cli.run(main)
