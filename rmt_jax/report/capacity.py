"""How much a memory holds: accuracy against the number of facts in a text, and the most facts that
were kept against the size of the memory. For associative recall facts are pairs.

Facts kept: of n facts a text has, n (a - c) / (1 - c) are kept where a is the accuracy and c that
of a random answer, since a model guesses what it has not kept. A memory's capacity is the most that
it keeps at any length.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report import figures
from rmt_jax.report.comparison import Groups
from rmt_jax.report.figures import COLOURS, GREY, PALE, mean
from rmt_jax.report.tables import ReportError
from rmt_jax.results import EvalResult

STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1, 1, 1)))  # by memory size


def by_memory(runs: Sequence[Sequence[EvalResult]]) -> dict[str, list[Sequence[EvalResult]]]:
    """Runs of the same memory cell and size (seeds, say) under one name, smaller memories first."""
    found: dict[tuple[str, int], list[Sequence[EvalResult]]] = {}
    for run in runs:
        found.setdefault((run[0].cell, run[0].memory), []).append(run)
    return {f"{cell}, {size:,} numbers": found[cell, size] for cell, size in sorted(found)}


def facts_kept(result: EvalResult, rule: str) -> float:
    """Of the facts in a text, on average, those that are kept (see above)."""
    share = (result.accuracy(rule) - result.chance) / (1 - result.chance)
    return result.facts * max(0.0, share)


def capacity(results: Sequence[EvalResult], rule: str) -> float:
    """The most facts kept at any length."""
    return max(facts_kept(result, rule) for result in results)


def capacity_table(groups: Groups, rule: str) -> str:
    """Markdown: per cent at each number of facts, one row per group and task, and the capacity;
    means over the runs of a group."""
    lines = []
    for task in _tasks(groups):
        shown = [r for runs in groups.values() for run in runs for r in _of_task(run, task)]
        lengths = sorted({r.length for r in shown}, key=lambda n: _facts_at(shown, n))
        heads = " | ".join(f"{_facts_at(shown, n):.0f}" for n in lengths)
        lines.append(f"| {task}: facts in a text | runs | {heads} | most kept |")
        lines.append("|---" * (len(lengths) + 3) + "|")
        for name, runs in groups.items():
            cells = []
            for length in lengths:
                here = [r.accuracy(rule) for run in runs for r in run if _is(r, task, length)]
                cells.append(f"{100 * mean(here):.1f}" if here else "")
            kept = [capacity(_of_task(run, task), rule) for run in runs]
            lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {_with_spread(kept)} |")
        chances = " | ".join(
            f"{100 * mean([r.chance for r in shown if r.length == n]):.1f}" for n in lengths
        )
        lines.append(f"| random answer | | {chances} | |")
    everything = [r for runs in groups.values() for run in runs for r in run]
    return "\n".join(lines) + f"\n\n{figures.footnote(everything, rule)}.\n"


def capacity_curves(groups: Groups, path: Path, *, rule: str, title: str = "") -> list[Path]:
    """Two panels per task. Left: accuracy against facts in a text, a curve per group, in the colour
    of its cell. Right: the capacity against the numbers that the memory is, a line per cell."""
    tasks = _tasks(groups)
    cells = list(dict.fromkeys(runs[0][0].cell for runs in groups.values()))
    colours = {cell: COLOURS[i % len(COLOURS)] for i, cell in enumerate(cells)}
    figure, grid = figures.canvas(9.2, 3.9 * len(tasks) + 0.6, len(tasks), 2)
    rows = [grid] if len(tasks) == 1 else list(grid)
    for task, (left, right) in zip(tasks, rows, strict=True):
        points: dict[str, list[tuple[float, float]]] = {cell: [] for cell in cells}
        for name, runs in groups.items():
            cell, memory = runs[0][0].cell, mean([run[0].memory for run in runs])
            style = STYLES[len(points[cell]) % len(STYLES)]
            _draw_accuracy(left, name, runs, task, rule, colours[cell], style)
            kept = [capacity(_of_task(run, task), rule) for run in runs]
            points[cell].append((memory, mean(kept)))
        _draw_chance(left, groups, task)
        for cell, found in points.items():
            found = sorted((memory, kept) for memory, kept in found if memory)
            if found:
                right.plot(*zip(*found, strict=True), "o-", color=colours[cell], lw=2, label=cell)
        left.set_ylabel(f"{task}: accuracy, %", fontsize=9)
        left.set_ylim(-0.5, 106)
        left.set_title("Accuracy")
        right.set_ylim(bottom=0)
        right.set_ylabel("most facts kept", fontsize=9)
        right.set_title("Capacity")
        for axes, what in ((left, "facts in a text"), (right, "numbers in the memory of a text")):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda v, _: figures.short_number(v))
            axes.set_xlabel(f"{what} (log scale)", fontsize=9)
            axes.yaxis.grid(True, color=PALE, lw=0.8)
            axes.set_axisbelow(True)
        if right.get_legend_handles_labels()[0]:
            right.set_ylim(0, 1.25 * right.dataLim.ymax)  # room for the legend
            right.legend(loc="upper center", ncols=len(cells), fontsize=8.5)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    heading = figures.figure_title("Facts that a memory holds", title)
    figure.suptitle(heading, fontweight="bold", x=0.01, ha="left")
    return figures.save(figure, path, pdf=True)


def _draw_accuracy(
    axes: Any, name: str, runs: Sequence[Any], task: str, rule: str, colour: str, style: Any
) -> None:
    """The mean of the runs, and each of them thin behind it where there are several."""
    curves = [
        sorted((r.facts, 100 * r.accuracy(rule)) for r in _of_task(run, task)) for run in runs
    ]
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, lw=0.7, alpha=0.45)
    shared = min(len(curve) for curve in curves)
    x = [mean([curve[i][0] for curve in curves]) for i in range(shared)]
    y = [mean([curve[i][1] for curve in curves]) for i in range(shared)]
    axes.plot(x, y, marker="o", ls=style, color=colour, lw=2, ms=4, label=name, zorder=3)


def _draw_chance(axes: Any, groups: Groups, task: str) -> None:
    shown = [r for runs in groups.values() for run in runs for r in _of_task(run, task)]
    chance = sorted((r.facts, 100 * r.chance) for r in shown)
    axes.plot(*zip(*chance, strict=True), color=GREY, lw=1.4, ls=(0, (5, 3)), label="random answer")


def _tasks(groups: Groups) -> list[str]:
    """Tasks whose results say how many facts a text has. Raises ReportError for none."""
    everything = [r for runs in groups.values() for run in runs for r in run if r.facts]
    if not everything:
        raise ReportError(
            "None of these results says how many facts a text has: evaluate again, on texts whose"
            " facts are known (python -m rmt_jax.evaluate --tasks recall)."
        )
    return figures.tasks_and_lengths(everything)[0]


def _of_task(run: Sequence[EvalResult], task: str) -> list[EvalResult]:
    found = [r for r in run if r.task == task and r.facts and not r.perturb]
    if not found:
        raise ReportError(f"One of the runs has no result of {task}: name runs of the same tasks.")
    return found


def _is(result: EvalResult, task: str, length: str) -> bool:
    return result.task == task and result.length == length and not result.perturb


def _facts_at(results: Sequence[EvalResult], length: str) -> float:
    return mean([r.facts for r in results if r.length == length])


def _with_spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.0f}"
    return f"{mean(values):.0f} ± {statistics.stdev(values):.0f}"
