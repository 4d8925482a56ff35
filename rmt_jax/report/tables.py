"""Tables of results: CSV, JSON, Markdown, and for the terminal. `read` reads the results again."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.errors import RmtError
from rmt_jax.report import figures
from rmt_jax.results import EvalResult

SUMMARY: tuple[str, ...] = (
    "task", "length", "score", "accuracy", "samples", "majority", "low", "high", "chance",
    "memory_reset", "tokens", "characters", "tokenizer", "counted_by", "decoding", "perturb",
    "trained",
)  # fmt: skip


class ReportError(RmtError):
    """Results that cannot be read; the message is a sentence for the user."""


def main_rule(results: Sequence[EvalResult], wanted: str = "") -> str:
    """The score to show first: the wanted one, or where a result lacks it (its answers are no
    labels) the first that all results share."""
    known = shared_rules(results)
    return wanted if wanted in known else known[0]


def shared_rules(results: Sequence[EvalResult]) -> list[str]:
    """The scores that every result has, in the order of the first one."""
    return [rule for rule in results[0].right if all(rule in r.right for r in results)]


def summary_row(result: EvalResult, rule: str) -> dict[str, Any]:
    """One line of summary.csv; rates are fractions."""
    low, high = result.interval(rule)
    reset = result.reset_accuracy(rule)
    return {
        "task": result.task,
        "length": result.length,
        "score": rule,
        "accuracy": round(result.accuracy(rule), 4),
        "samples": result.samples,
        "majority": round(result.majority, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "chance": round(result.chance, 4),
        "memory_reset": "" if reset is None else round(reset, 4),
        "tokens": round(result.tokens),
        "characters": round(result.characters),
        "tokenizer": result.tokenizer,
        "counted_by": result.counted_by or result.tokenizer,
        "decoding": result.decoding,
        "perturb": result.perturb,
        "trained": "" if result.trained is None else result.trained,
    }


def csv_text(results: Sequence[EvalResult], rules: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, SUMMARY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary_row(result, rule) for result in in_order(results) for rule in rules)
    return out.getvalue()


def in_order(results: Sequence[EvalResult]) -> list[EvalResult]:
    """By perturbation, then task, then length."""
    tasks, lengths = figures.tasks_and_lengths(results)
    return sorted(results, key=lambda r: (r.perturb, tasks.index(r.task), lengths.index(r.length)))


def json_text(results: Sequence[EvalResult], rule: str) -> str:
    means = {}
    tasks, lengths = figures.tasks_and_lengths(results)
    for length in lengths:
        here = [r for r in results if r.length == length and not r.perturb]
        if len(here) == len(tasks):
            means[length] = round(figures.mean([r.accuracy(rule) for r in here]), 4)
    tree = {
        "score": rule,
        "mean_accuracy": means,
        "results": [
            dataclasses.asdict(r) | {"accuracy": {rule: r.accuracy(rule) for rule in r.right}}
            for r in in_order(results)
        ],
    }
    return json.dumps(tree, indent=1) + "\n"


def read(folder: Path) -> list[EvalResult]:
    """The results of a folder written by `write` (or of its `results/`). Raises ReportError."""
    places = [folder / "summary.json", folder / "results" / "summary.json"]
    file = next((p for p in places if p.exists()), None)
    if file is None:
        raise ReportError(
            f"{folder} holds no summary.json: run python -m rmt_jax.evaluate with --out {folder}."
        )
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if "cells" in tree and "results" not in tree:
            raise ReportError(
                f"{file} was written by an earlier version of rmt_jax: it holds 'cells', not"
                " 'results'. Evaluate again: python -m rmt_jax.evaluate --workdir RUN --out"
                f" {file.parent}."
            )
        return [result_from_json(result) for result in tree["results"]]
    except ReportError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{file} is not one of our summaries ({error}).") from error


def result_from_json(tree: Mapping[str, Any]) -> EvalResult:
    """One result from the tree that `json_text` wrote."""
    names = {f.name for f in dataclasses.fields(EvalResult)}
    kept = {k: v for k, v in tree.items() if k in names}
    kept["depths"] = tuple((float(d), bool(r)) for d, r in kept.get("depths", ()))
    return EvalResult(**kept)


def markdown(results: Sequence[EvalResult], rule: str) -> str:
    """Tasks × lengths in per cent with the half-width of the Wilson interval, the majority answer
    and the memory-reset control below; what was counted and by whose tokens under it."""
    out = []
    for perturb in sorted({r.perturb for r in results}):
        part = [r for r in results if r.perturb == perturb]
        if perturb:
            out.append(f"**Perturbed: {perturb}**\n")
        out.append(_markdown_part(part, rule))
    return (
        "\n".join(out) + f"\n{figures.footnote(results, rule)}; ± is half a 95 % Wilson interval.\n"
    )


def _markdown_part(results: Sequence[EvalResult], rule: str) -> str:
    tasks, lengths = figures.tasks_and_lengths(results)
    at = {(r.task, r.length): r for r in results}
    lines = ["| | " + " | ".join(lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for task in tasks:
        found = [at.get((task, n)) for n in lengths]
        lines.append(f"| {task.upper()} | " + " | ".join(_percent(r, rule) for r in found) + " |")
    for name, pick in _baselines(rule, len(tasks) > 1):
        line = []
        for n in lengths:
            values = [pick(at[t, n]) for t in tasks if (t, n) in at]
            full = len(values) == len(tasks) and None not in values
            line.append(f"{100 * figures.mean(values):.1f}" if full else "")
        if any(line):
            lines.append(f"| {name} | " + " | ".join(line) + " |")
    for field in ("tokens", "characters"):
        here = [[getattr(r, field) for r in results if r.length == n] for n in lengths]
        line = " | ".join(f"{figures.mean(values):,.0f}" for values in here)
        lines.append(f"| {field} | {line} |")
    return "\n".join(lines) + "\n"


def _percent(result: EvalResult | None, rule: str) -> str:
    if result is None:
        return ""
    low, high = result.interval(rule)
    return f"{100 * result.accuracy(rule):.1f} ± {50 * (high - low):.1f}"


def _baselines(rule: str, mean: bool) -> list[tuple[str, Any]]:
    rows = [("**mean**", lambda r: r.accuracy(rule))] if mean else []
    return rows + [
        ("memory reset", lambda r: r.reset_accuracy(rule)),
        ("majority answer", lambda r: r.majority),
        ("random answer", lambda r: r.chance),
    ]


def table(results: Sequence[EvalResult], rule: str = "") -> str:
    """For the terminal: one row per task and length."""
    rule = main_rule(results, rule)
    head = (
        "task",
        "length",
        "tokens",
        "chars",
        "accuracy",
        "95 % interval",
        "majority",
        "random",
        "reset",
        "n",
    )
    rows: list[tuple[str, ...]] = [head]
    for r in in_order(results):
        low, high = r.interval(rule)
        reset = r.reset_accuracy(rule)
        rows.append(
            (
                r.task + (f" ({r.perturb})" if r.perturb else ""),
                r.length + ("" if r.trained is not False else "*"),
                f"{r.tokens:,.0f}",
                f"{r.characters:,.0f}",
                f"{100 * r.accuracy(rule):.1f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{100 * r.majority:.1f}",
                f"{100 * r.chance:.1f}",
                "" if reset is None else f"{100 * reset:.1f}",
                str(r.samples),
            )
        )
    widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
    lines = [
        "  ".join(v.ljust(w) if k < 2 else v.rjust(w) for k, (v, w) in enumerate(zip(r, widths)))  # noqa: B905
        for r in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    for length in figures.tasks_and_lengths(results)[1]:
        here = [r for r in results if r.length == length and not r.perturb]
        if len(here) > 1:
            mean = 100 * figures.mean([r.accuracy(rule) for r in here])
            major = 100 * figures.mean([r.majority for r in here])
            resets = [r.reset_accuracy(rule) for r in here]
            reset = [r for r in resets if r is not None]
            tail = f", memory reset {100 * figures.mean(reset):.1f}" if reset else ""
            chance = 100 * figures.mean([r.chance for r in here])
            lines.append(
                f"mean at {length}: {mean:.1f} (majority {major:.1f}, random {chance:.1f}{tail})"
            )
    if any(r.trained is False for r in results):
        lines.append("* not a trained task and length")
    lines.append(figures.footnote(results, rule))
    return "\n".join(lines)
