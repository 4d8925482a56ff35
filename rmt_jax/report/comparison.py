"""Several runs beside each other, and published figures behind ours: a table and small plots."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report import figures
from rmt_jax.report.curves import accuracy_curve
from rmt_jax.report.figures import COLOURS, GREY, PALE, mean, tasks_and_lengths
from rmt_jax.results import EvalResult

GPT2_CHARACTERS = 4.0  # a token of GPT-2 in English prose (3.9 in novels, 4.6 in manuals)
REFERENCE = ("#9A9A9A", "#C2A26B", "#8FA9C4", "#B58FB5", "#A3B899", "#C99")

# name -> runs (seeds of one setting) -> results
Groups = Mapping[str, Sequence[Sequence[EvalResult]]]


def comparison_table(groups: Groups, rule: str) -> str:
    """Markdown: mean ± standard deviation over the runs, one row per group and task; the
    majority and the random answer below."""
    everything = _unperturbed(groups)
    tasks, lengths = tasks_and_lengths(everything)
    lines = ["| group | runs | task | " + " | ".join(lengths) + " |"]
    lines.append("|---" * (len(lengths) + 3) + "|")
    for group, runs in groups.items():
        for task in [*tasks, "mean"]:
            found = [_values(runs, task, length, tasks, rule) for length in lengths]
            line = " | ".join(_mean_and_deviation(values) for values in found)
            lines.append(f"| {group} | {len(runs)} | {task} | {line} |")
    for name, pick in (("majority", lambda r: r.majority), ("random", lambda r: r.chance)):
        line = [mean([pick(r) for r in everything if r.length == n]) for n in lengths]
        shown = " | ".join(f"{100 * v:.1f}" for v in line)
        lines.append(f"| {name} answer | | mean | {shown} |")
    note = figures.footnote(everything, rule)
    return "\n".join(lines) + f"\n\n{note}; ± is the standard deviation.\n"


def _unperturbed(groups: Groups) -> list[EvalResult]:
    return [r for runs in groups.values() for run in runs for r in run if not r.perturb]


def _values(
    runs: Sequence[Sequence[EvalResult]], panel: str, length: str, tasks: Sequence[str], rule: str
) -> list[float]:
    """Per cent of each run at a task and length; the mean over tasks where a run has them all (one
    over other tasks would mislead)."""
    found, wanted = [], tasks if panel == "mean" else [panel]
    for run in runs:
        here = [r for r in run if r.length == length and not r.perturb and r.task in wanted]
        if len(here) == len(wanted):
            found.append(100 * mean([r.accuracy(rule) for r in here]))
    return found


def _mean_and_deviation(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def comparison_curves(
    groups: Groups,
    path: Path,
    *,
    rule: str = "official",
    title: str = "",
    references: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Accuracy against tokens read: one small plot per task and one for the mean. A group of one
    run is a line with its Wilson band; of several, their mean with a band of one standard deviation
    and the runs thin behind it. `references` are published curves, thin, each labelled with its own
    metric; then tokens are GPT-2's."""
    if references:
        groups = {
            name: [[dataclasses.replace(r, tokens=gpt2_tokens(r)) for r in run] for run in runs]
            for name, runs in groups.items()
        }
    everything = _unperturbed(groups)
    tasks, _ = tasks_and_lengths(everything)
    panels = [*tasks, "mean"] if len(tasks) > 1 else tasks
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = figures.canvas(3.9 * columns + 0.4, 3.0 * rows + 1.0, rows, columns)
    flat = list(grid.ravel()) if hasattr(grid, "ravel") else [grid]
    for k, axes in enumerate(flat):
        if k >= len(panels):
            axes.set_visible(False)
            continue
        _draw_published(axes, panels[k], references)
        _draw_majority(axes, panels[k], tasks, everything)
        for colour, (name, runs) in zip(_colours(len(groups)), groups.items(), strict=True):
            _draw_group(axes, panels[k], name, runs, tasks, rule, colour)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda v, _: figures.short_number(v))
        axes.set_ylim(-0.5, 106)
        axes.yaxis.grid(True, color=PALE, lw=0.8)
        axes.set_axisbelow(True)
        axes.set_title(panels[k].upper() if panels[k] != "mean" else "mean")
        if k % columns == 0:
            axes.set_ylabel("accuracy, %", fontsize=9)
        if k + columns >= len(panels):
            axes.set_xlabel("tokens read (log scale)", fontsize=9)
    handles: dict[str, Any] = {}
    for axes in flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center",
                  ncols=min(3, len(handles)), fontsize=8.5)  # fmt: skip
    counted = " (GPT-2's; ours estimated at 4 characters each where not counted)"
    figure.suptitle(
        (title or "Accuracy against tokens read") + (counted if references else ""),
        fontweight="bold", x=0.01, ha="left",
    )  # fmt: skip
    return figures.save(figure, path, pdf=True)


def gpt2_tokens(result: EvalResult) -> float:
    """Published lengths are in GPT-2's tokens: counted where that tokenizer was at hand, else
    estimated from the characters."""
    return result.gpt2_tokens or result.characters / GPT2_CHARACTERS or result.tokens


def _colours(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def _draw_group(
    axes: Any,
    panel: str,
    name: str,
    runs: Sequence[Sequence[EvalResult]],
    tasks: Sequence[str],
    rule: str,
    colour: str,
) -> None:
    results = [r for run in runs for r in run if not r.perturb and panel in (r.task, "mean")]
    points = []  # (tokens, values of the runs); a length that a run lacks has no point
    for length in tasks_and_lengths(results)[1]:
        values = _values(runs, panel, length, tasks, rule)
        if len(values) == len(runs):
            tokens = mean([r.tokens for r in results if r.length == length])
            points.append((max(1.0, tokens), values))
    if not points:
        return
    x, y = [p[0] for p in points], [mean(p[1]) for p in points]
    label = f"{name} ({rule})"
    if len(runs) > 1:
        label = f"{name} ({rule}; mean ± sd of {len(runs)} runs)"
        for k in range(len(runs)):
            axes.plot(x, [p[1][k] for p in points], color=colour, lw=0.7, alpha=0.45, zorder=2)
        sd = [statistics.stdev(p[1]) for p in points]
        low = [v - s for v, s in zip(y, sd, strict=True)]
        high = [v + s for v, s in zip(y, sd, strict=True)]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    elif panel != "mean":
        band = accuracy_curve(results, rule)
        axes.fill_between(band[0], *band[2], color=colour, alpha=0.12, lw=0)
    axes.plot(x, y, "o-", color=colour, lw=2.2, ms=4, zorder=3, label=label)


def _draw_majority(
    axes: Any, panel: str, tasks: Sequence[str], results: Sequence[EvalResult]
) -> None:
    wanted = tasks if panel == "mean" else [panel]
    points = []
    for length in tasks_and_lengths(results)[1]:
        here = [r for r in results if r.length == length and r.task in wanted]
        if {r.task for r in here} == set(wanted):
            points.append((mean([r.tokens for r in here]), 100 * mean([r.majority for r in here])))
    if points:
        axes.plot(*zip(*sorted(points), strict=True), color=GREY, lw=1.4, ls=(0, (5, 3)),
                  label="majority answer", zorder=1)  # fmt: skip


def _draw_published(axes: Any, panel: str, references: Sequence[Mapping[str, Any]]) -> None:
    for k, (model, metric) in enumerate(sorted({(r["model"], r["metric"]) for r in references})):
        points = sorted(
            (r["tokens"], r["accuracy"])
            for r in references
            if (r["model"], r["metric"], r["task"]) == (model, metric, panel) and r["tokens"] > 0
        )
        if points:
            axes.plot(*zip(*points, strict=True), color=REFERENCE[k % len(REFERENCE)], lw=1.4,
                      ls=(0, (3, 1.2)), marker=".", ms=4, zorder=2,
                      label=f"{model} ({metric})")  # fmt: skip
