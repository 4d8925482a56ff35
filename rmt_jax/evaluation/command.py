"""What `python -m rmt_jax.evaluate` does: opens the questions, evaluates, reports."""

import argparse
import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax import report
from rmt_jax.api import Model, load
from rmt_jax.cli import Usage, split_names
from rmt_jax.evaluation import chat, inspection, perplexity, runner, sources, suite
from rmt_jax.models.io.folder import ASSETS
from rmt_jax.report import language
from rmt_jax.runtime import peers, startup, switches
from rmt_jax.runtime.preemption import REQUEUE, Signals, Stopped

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """The exit code: 0; 75 where SIGTERM came between, as schedulers send it: then the same command
    continues. The processes of a cluster share the questions, and the first one writes. Raises
    RmtError."""
    switches.make_neutral()
    startup.join()
    kept = "answers are kept: the same command continues"
    try:
        with peers.noticed(), Signals() as signals, contextlib.ExitStack() as others:
            signals.now_at_once()
            if not startup.owner():  # has the same to say
                others.enter_context(contextlib.redirect_stdout(io.StringIO()))
            return _run(args)
    except Stopped as stop:
        log.warning("%s; %s", stop, kept)
        return REQUEUE
    except KeyboardInterrupt:
        log.warning("stopped; %s", kept)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.html and not args.inspect:
        raise Usage("--html is the page of --inspect: give both.")
    model = load(
        args.workdir, segment_tokens=args.segment_tokens, everywhere=None if args.inspect else True
    )
    out = args.out or default_out(args.workdir)
    if args.perplexity:
        return measure_and_report(args, model, out)
    if args.data in ("generated", "official") and Path(args.data).is_dir():
        log.warning("--data %s is no folder; for the one here: --data ./%s", args.data, args.data)
    template = chat.chat_for(model, args.chat)
    if template and args.teacher_forced:
        raise Usage(
            "--teacher_forced gives a model the answer's words, as in training, and this one is"
            " asked in its chat template: leave it out, or give --chat=no."
        )
    if template:
        log.warning("asked in its chat template; with --chat=no text and question stand alone")
    source = sources.open_source(
        args.data,
        model,
        split=args.split,
        seed=args.seed,
        babi=args.babi,
        background=args.background,
        background_split=args.background_split,
        lengths_by=args.lengths_by,
        chat=template,
    )
    tasks, lengths = split_names(args.tasks), split_names(args.lengths)
    if args.inspect and not startup.owner():
        return 0
    if args.inspect:
        paths = inspection.inspect_memory(model, source, tasks, lengths, out / "inspect", args.html)
        print("written:", ", ".join(str(p) for p in paths))
        return 0
    options = {
        "tasks": tasks,
        "lengths": lengths,
        "samples": args.samples,
        "batch": args.batch,
        "seed": args.seed,
        "reset": not args.no_reset,
        "decoding": "teacher-forced" if args.teacher_forced else "greedy",
        "out": out,
        "name": args.name or f"rmt_jax/{Path(args.workdir).resolve().name}",
    }
    perturbations = split_names(args.perturb)
    if args.suite == "paper":
        paths = suite.paper_suite(
            model,
            source,
            perturbations=perturbations,
            rule=args.score,
            references=args.references,
            **options,
        )
        print("\nwritten:", ", ".join(str(p) for p in paths))
        return 0
    return evaluate_and_report(args, model, source, perturbations, options)


def measure_and_report(args: argparse.Namespace, model: Model, out: Path) -> int:
    """How well texts are predicted, into OUT and as a table for the terminal. Raises RmtError."""
    given = (
        "tasks",
        "lengths",
        "babi",
        "lengths_by",
        "background",
        "background_split",
        "perturb",
        "suite",
    )
    unused = [f"--{name}" for name in (*given, "inspect", "teacher_forced") if getattr(args, name)]
    unused += ["--chat"] if args.chat != "auto" else []
    if unused:
        raise Usage(f"--perplexity asks no questions, so leave out {', '.join(unused)}.")
    data = "" if args.data == "generated" else args.data
    result = perplexity.measure(
        model,
        perplexity.open_texts(model, data, args.split),
        samples=args.samples,
        tokens=args.tokens,
        batch=args.batch,
        reset=not args.no_reset,
        out=out,
    )
    if not startup.owner():
        return 0
    paths = language.write(result, out, title=args.name)
    print(language.table(result))
    print(f"\nwritten: {out}/ ({', '.join(p.name for p in paths)})")
    return 0


def evaluate_and_report(
    args: argparse.Namespace,
    model: Model,
    source: Any,
    perturbations: Sequence[str],
    options: dict[str, Any],
) -> int:
    """The results of unchanged texts into OUT, those of each perturbation into a folder of its own
    below it; one table for the terminal."""
    out = options["out"]
    results = runner.evaluate(model, source=source, perturb=["", *perturbations], **options)
    if not startup.owner():
        return 0
    paths = report.write(
        [r for r in results if not r.perturb],
        out,
        rule=args.score,
        metrics=Path(args.workdir) / "metrics.jsonl",
        references=args.references,
    )
    for perturbation in perturbations:
        perturbed = [r for r in results if r.perturb == perturbation]
        folder, title = out / perturbation, f"Perturbed: {perturbation}"
        paths += report.write(perturbed, folder, rule=args.score, title=title)
    print(report.table(results, args.score))
    print(f"\nwritten: {out}/ ({', '.join(p.name for p in paths if p.parent == out)})")
    return 0


def default_out(workdir: str) -> Path:
    """WORKDIR/evaluation, or a folder here for a checkpoint from the hub or of the package."""
    folder = Path(workdir)
    own = folder.is_dir() and folder.parent != ASSETS
    return (folder if own else Path("evaluation") / folder.name) / "evaluation"
