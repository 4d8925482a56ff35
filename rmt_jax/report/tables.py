"""Tables of results: CSV, JSON, Markdown, and for the terminal. `read` gives the cells back."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report import figures
from rmt_jax.scores import Cell

SUMMARY: tuple[str, ...] = (
    "task", "length", "score", "accuracy", "samples", "majority", "low", "high", "chance",
    "memory_reset", "tokens", "characters", "tokenizer", "counted_by", "decoding", "perturb",
    "trained",
)  # fmt: skip


class ReportError(ValueError):
    """Results that cannot be read; the message is a sentence for the user."""


def main_rule(cells: Sequence[Cell], wanted: str = "") -> str:
    """The score to show first: the wanted or the official one, unless a cell could not be scored by
    it (its words are no labels): then strict exact match."""
    known = rules(cells)
    return next((rule for rule in (wanted, "official") if rule in known), "exact")


def rules(cells: Sequence[Cell]) -> list[str]:
    """The scores that every cell has, in the order of the first cell."""
    return [r for r in cells[0].right if all(r in c.right for c in cells)]


def row(cell: Cell, rule: str) -> dict[str, Any]:
    """One line of summary.csv; rates are fractions."""
    low, high = cell.interval(rule)
    reset = cell.reset_accuracy(rule)
    return {
        "task": cell.task,
        "length": cell.length,
        "score": rule,
        "accuracy": round(cell.accuracy(rule), 4),
        "samples": cell.samples,
        "majority": round(cell.majority, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "chance": round(cell.chance, 4),
        "memory_reset": "" if reset is None else round(reset, 4),
        "tokens": round(cell.tokens),
        "characters": round(cell.characters),
        "tokenizer": cell.tokenizer,
        "counted_by": cell.counted or cell.tokenizer,
        "decoding": cell.decoding,
        "perturb": cell.perturb,
        "trained": "" if cell.trained is None else cell.trained,
    }


def csv_text(cells: Sequence[Cell], which: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, SUMMARY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(cell, rule) for cell in in_order(cells) for rule in which)
    return out.getvalue()


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """By perturbation, then task, then length."""
    tasks, lengths = figures.names(cells)
    return sorted(cells, key=lambda c: (c.perturb, tasks.index(c.task), lengths.index(c.length)))


def json_text(cells: Sequence[Cell], rule: str) -> str:
    means = {}
    tasks, lengths = figures.names(cells)
    for length in lengths:
        here = [c for c in cells if c.length == length and not c.perturb]
        if len(here) == len(tasks):
            means[length] = round(figures.mean([c.accuracy(rule) for c in here]), 4)
    tree = {
        "score": rule,
        "mean_accuracy": means,
        "cells": [
            dataclasses.asdict(c) | {"accuracy": {r: c.accuracy(r) for r in c.right}}
            for c in in_order(cells)
        ],
    }
    return json.dumps(tree, indent=1) + "\n"


def read(folder: Path) -> list[Cell]:
    """The cells of a folder written by `write` (or of its `results/`). Raises ReportError."""
    places = [folder / "summary.json", folder / "results" / "summary.json"]
    file = next((p for p in places if p.exists()), None)
    if file is None:
        raise ReportError(
            f"{folder} holds no summary.json: run python -m rmt_jax.evaluate with --out {folder}."
        )
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        return [cell_from(c) for c in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{file} is not one of our summaries ({error}).") from error


def cell_from(tree: Mapping[str, Any]) -> Cell:
    """A cell back from its JSON."""
    names = {f.name for f in dataclasses.fields(Cell)}
    kept = {k: v for k, v in tree.items() if k in names}
    kept["depths"] = tuple((float(d), bool(r)) for d, r in kept.get("depths", ()))
    return Cell(**kept)


def markdown(cells: Sequence[Cell], rule: str) -> str:
    """Tasks × lengths in per cent with the half-width of the Wilson interval, the majority answer
    and the memory-reset control below; what was counted and by whose tokens under it."""
    out = []
    for perturb in sorted({c.perturb for c in cells}):
        part = [c for c in cells if c.perturb == perturb]
        if perturb:
            out.append(f"**Perturbed: {perturb}**\n")
        out.append(_markdown_part(part, rule))
    return (
        "\n".join(out) + f"\n{figures.footnote(cells, rule)}; ± is half a 95 % Wilson interval.\n"
    )


def _markdown_part(cells: Sequence[Cell], rule: str) -> str:
    tasks, lengths = figures.names(cells)
    at = {(c.task, c.length): c for c in cells}
    lines = ["| | " + " | ".join(lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for task in tasks:
        found = [at.get((task, n)) for n in lengths]
        lines.append(f"| {task.upper()} | " + " | ".join(_percent(c, rule) for c in found) + " |")
    for name, pick in _baselines(rule, len(tasks) > 1):
        line = []
        for n in lengths:
            values = [pick(at[t, n]) for t in tasks if (t, n) in at]
            full = len(values) == len(tasks) and None not in values
            line.append(f"{100 * figures.mean(values):.1f}" if full else "")
        if any(line):
            lines.append(f"| {name} | " + " | ".join(line) + " |")
    for name, field, digits in (("tokens", "tokens", 0), ("characters", "characters", 0)):
        means = [figures.mean([getattr(c, field) for c in cells if c.length == n]) for n in lengths]
        lines.append(f"| {name} | " + " | ".join(f"{m:,.{digits}f}" for m in means) + " |")
    return "\n".join(lines) + "\n"


def _percent(cell: Cell | None, rule: str) -> str:
    if cell is None:
        return ""
    low, high = cell.interval(rule)
    return f"{100 * cell.accuracy(rule):.1f} ± {50 * (high - low):.1f}"


def _baselines(rule: str, mean: bool) -> list[tuple[str, Any]]:
    rows = [("**mean**", lambda c: c.accuracy(rule))] if mean else []
    return rows + [
        ("memory reset", lambda c: c.reset_accuracy(rule)),
        ("majority answer", lambda c: c.majority),
        ("random answer", lambda c: c.chance),
    ]


def table(cells: Sequence[Cell], rule: str = "") -> str:
    """For the terminal: a row a task and length."""
    rule = main_rule(cells, rule)
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
    for c in in_order(cells):
        low, high = c.interval(rule)
        reset = c.reset_accuracy(rule)
        rows.append(
            (
                c.task + (f" ({c.perturb})" if c.perturb else ""),
                c.length + ("" if c.trained is not False else "*"),
                f"{c.tokens:,.0f}",
                f"{c.characters:,.0f}",
                f"{100 * c.accuracy(rule):.1f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{100 * c.majority:.1f}",
                f"{100 * c.chance:.1f}",
                "" if reset is None else f"{100 * reset:.1f}",
                str(c.samples),
            )
        )
    widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
    lines = [
        "  ".join(v.ljust(w) if k < 2 else v.rjust(w) for k, (v, w) in enumerate(zip(r, widths)))  # noqa: B905
        for r in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    for length in figures.names(cells)[1]:
        here = [c for c in cells if c.length == length and not c.perturb]
        if len(here) > 1:
            mean = 100 * figures.mean([c.accuracy(rule) for c in here])
            major = 100 * figures.mean([c.majority for c in here])
            resets = [c.reset_accuracy(rule) for c in here]
            reset = [r for r in resets if r is not None]
            tail = f", memory reset {100 * figures.mean(reset):.1f}" if reset else ""
            chance = 100 * figures.mean([c.chance for c in here])
            lines.append(
                f"mean at {length}: {mean:.1f} (majority {major:.1f}, random {chance:.1f}{tail})"
            )
    if any(c.trained is False for c in cells):
        lines.append("* not a trained task and length")
    lines.append(figures.footnote(cells, rule))
    return "\n".join(lines)


def replace(file: Path, text: str) -> None:
    """Writes whole or not at all: a reader never sees half a file."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
