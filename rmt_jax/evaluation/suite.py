"""What `python -m rmt_jax.evaluate` does: settle the questions, evaluate, report.

`--suite paper` asks for all that a paper's table needs and writes one report with the pictures
inside: trained lengths, longer ones, tasks never trained on (described by their prompt), and the
perturbations.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax import report
from rmt_jax.api import InputError, Model, load
from rmt_jax.config import ConfigError
from rmt_jax.data import perturb
from rmt_jax.evaluation import inspection, sources
from rmt_jax.evaluation import runner as evaluation
from rmt_jax.evaluation.answering import AnsweringError
from rmt_jax.evaluation.runner import EvaluationError
from rmt_jax.evaluation.sources import QuestionError
from rmt_jax.evaluation.text_stream import TextError
from rmt_jax.models.io.hub import WeightsError
from rmt_jax.report import page
from rmt_jax.runtime.preemption import REQUEUE, Signals, Stopped
from rmt_jax.scores import Cell

SENTENCES = (
    WeightsError, InputError, QuestionError, AnsweringError, EvaluationError, ConfigError,
    TextError, report.ReportError, OSError,
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """The exit code: 0; 2 after a sentence on what is wrong; 75 where SIGTERM came between, as
    schedulers send it: then the same command continues."""
    kept = "answers are kept: the same command continues"
    try:
        with Signals() as signals:
            signals.now_at_once()
            return _run(args)
    except SENTENCES as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{stop}; {kept}", file=sys.stderr)
        return REQUEUE
    except KeyboardInterrupt:
        print(f"stopped; {kept}", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    model = load(args.workdir)
    out = args.out or default_out(args.workdir)
    source = sources.open_source(
        args.data,
        model,
        split=args.split,
        seed=args.seed,
        babi=args.babi,
        background=args.background,
        lengths_by=args.lengths_by,
    )
    tasks, lengths = words(args.tasks), words(args.lengths)
    if args.inspect:
        paths = inspection.inspect(model, source, tasks, lengths, out / "inspect")
        print("written:", ", ".join(str(p) for p in paths))
        return 0
    settings = {
        "samples": args.samples,
        "batch": args.batch,
        "seed": args.seed,
        "reset": not args.no_reset,
        "decoding": "teacher-forced" if args.teacher_forced else "greedy",
        "out": out,
        "name": args.name or f"rmt_jax/{Path(args.workdir).resolve().name}",
    }
    if args.suite == "paper":
        return paper(args, model, source, tasks, lengths, settings)
    changes = ["", *words(args.perturb)]
    cells = evaluation.evaluate(
        model, tasks=tasks, lengths=lengths, perturb=changes, source=source, **settings
    )
    paths = report.write(
        [c for c in cells if not c.perturb],
        out,
        rule=args.score,
        metrics=Path(args.workdir) / "metrics.jsonl",
        references=args.references,
    )
    for how in changes[1:]:
        part = [c for c in cells if c.perturb == how]
        paths += report.write(part, out / how, rule=args.score, title=f"Perturbed: {how}")
    print(report.table(cells, args.score))
    print(f"\nwritten: {out}/ ({', '.join(p.name for p in paths if p.parent == out)})")
    return 0


def paper(
    args: argparse.Namespace,
    model: Model,
    source: Any,
    tasks: Sequence[str],
    lengths: Sequence[str],
    settings: dict[str, Any],
) -> int:
    """The whole suite; its parts are written and printed as they are finished."""
    config, out = model.config, settings["out"]
    tasks = list(tasks or config.data.tasks)
    longest = config.longest_segments
    doubled = {1 << k for k in range(longest.bit_length())}
    trained = [f"{s}s" for s in sorted({*(stage.segments for stage in config.stages), *doubled})]
    longer = [f"{longest * k}s" for k in (2, 4, 8, 16)]
    changes = words(args.perturb) or source.perturbations()
    for how in changes:  # a wrong name is told before hours of work
        source.check(how)
    parts: list[tuple[str, str, list[Cell]]] = []

    def part(title: str, text: str, **what: Any) -> None:
        try:
            cells = evaluation.evaluate(model, source=source, **(settings | what))
        except QuestionError as error:  # one part that cannot be had must not cost the others
            print(f"\n{title}: left out. {error}")
            parts.append((title, f"{text} Left out: {error}", []))
            return
        folder = out / title.lower().replace(" ", "_")
        main = title == "Lengths"
        report.write(
            cells,
            folder,
            rule=args.score,
            title="" if main else title,
            references=main and args.references,
        )
        print(f"\n{title}\n{report.table(cells, args.score)}")
        parts.append((title, text, cells))

    part(
        "Lengths",
        "Trained lengths, and longer ones than any in training.",
        tasks=tasks,
        lengths=lengths or [*trained, *longer],
    )
    unseen = [t for t in source.tasks() if t not in config.data.tasks]
    if unseen and config.prompt.source in ("description", "both", "question"):
        part(
            "Unseen tasks",
            "Tasks never trained on; the model knows of them what their prompt says.",
            tasks=unseen,
            lengths=trained[:1],
        )
    for how in changes:
        part(
            f"Perturbed {how}",
            perturb.PERTURBATIONS[how],
            tasks=tasks,
            lengths=trained[:1] + trained[-1:] if len(trained) > 1 else trained,
            perturb=[how],
        )
    paths = page.write(out, parts, model, rule=args.score)
    print("\nwritten:", ", ".join(str(p) for p in paths))
    return 0


def words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def default_out(workdir: str) -> Path:
    """WORKDIR/evaluation, or a folder here for a checkpoint from the hub."""
    folder = Path(workdir)
    return (folder if folder.is_dir() else Path("evaluation") / folder.name) / "evaluation"
