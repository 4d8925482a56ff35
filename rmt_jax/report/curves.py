"""Lines: accuracy against length, learning curves, accuracy against the depth of the facts."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report.figures import (  # fmt: skip
    COLOURS,
    GREY,
    INK,
    PALE,
    canvas,
    figure_title,
    footnote,
    mean,
    save,
    short_number,
    task_order,
    tasks_and_lengths,
    wrap_note,
)
from rmt_jax.report.tables import ReportError
from rmt_jax.results import EvalResult
from rmt_jax.scores import wilson

FEW = 5  # questions at one depth; fewer make no point

# Light for short texts, dark for long ones.
DEPTHS = ("#BFD9E6", "#8FC1D4", "#5FA6C0", "#3587AB", "#1B668E", "#0B4566", "#06283D")


def length_curves(
    results: Sequence[EvalResult], path: Path, *, rule: str = "official", title: str = ""
) -> list[Path]:
    """Accuracy against tokens read (log axis): one line per task with its Wilson band, the mean in
    black, the memory-reset control and the majority answer dashed."""
    tasks, _ = tasks_and_lengths(results)
    figure, axes = canvas(7.2, 4.4)
    ends = []
    for i, task in enumerate(tasks):
        x, y, band = accuracy_curve([r for r in results if r.task == task], rule)
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(x, band[0], band[1], color=colour, alpha=0.10, lw=0)
        axes.plot(x, y, "o-", color=colour, lw=1.8, ms=4, zorder=3)
        ends.append((y[-1], task.upper(), colour))
    x, y = _means(results, tasks, lambda r: r.accuracy(rule))
    if len(tasks) > 1 and x:
        axes.plot(x, y, "-", color=INK, lw=3, zorder=4)
        ends.append((y[-1], "mean", INK))
    for name, style, pick in (
        ("memory reset at each segment (mean)", (0, (1, 1.5)), lambda r: r.reset_accuracy(rule)),
        ("majority answer (mean)", (0, (5, 3)), lambda r: r.majority),
    ):
        x, y = _means(results, tasks, pick)
        if x:
            axes.plot(x, y, color=GREY, lw=1.6, ls=style, label=name, zorder=2)
    _shade_trained(axes, results)
    _length_axis(axes, results)
    _label_ends(axes, ends)
    axes.set_title(figure_title("Accuracy against length", title))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8, handlelength=2.6)
    figure.supxlabel(footnote(results, rule), fontsize=7, color="#6B6B6B")
    return save(figure, path, pdf=True)


def accuracy_curve(
    results: Sequence[EvalResult], rule: str
) -> tuple[list, list, tuple[list, list]]:
    results = sorted(results, key=lambda r: r.tokens)
    intervals = [r.interval(rule) for r in results]
    x = [max(1.0, r.tokens) for r in results]
    y = [100 * r.accuracy(rule) for r in results]
    return x, y, ([100 * low for low, _ in intervals], [100 * high for _, high in intervals])


def _means(results: Sequence[EvalResult], tasks: Sequence[str], pick: Any) -> tuple[list, list]:
    """Means over tasks, in per cent, at the lengths where each task has a value."""
    points = []
    for length in tasks_and_lengths(results)[1]:
        here = [r for r in results if r.length == length]
        values = [pick(r) for r in here]
        if len(here) == len(tasks) and all(v is not None for v in values):
            points.append((max(1.0, mean([r.tokens for r in here])), 100 * mean(values)))
    points.sort()
    return [p[0] for p in points], [p[1] for p in points]


def _shade_trained(axes: Any, results: Sequence[EvalResult]) -> None:
    trained = [r.tokens for r in results if r.trained and r.tokens]
    if trained and max(trained) < max(r.tokens for r in results):
        low = min(r.tokens for r in results) / 1.15
        axes.axvspan(low, max(trained) * 1.15, color="#F3F6F4", zorder=0, lw=0)
        axes.text(low, 101, " trained", ha="left", va="bottom", fontsize=8, color=GREY)


def _length_axis(axes: Any, results: Sequence[EvalResult]) -> None:
    tokens: dict[str, list[float]] = {}
    for result in results:
        tokens.setdefault(result.length, []).append(result.tokens)
    ticks = sorted(((n, mean(values)) for n, values in tokens.items()), key=lambda p: p[1])
    places = [max(1.0, p[1]) for p in ticks]
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{n}\n{short_number(t)}" for n, t in ticks], fontsize=8.5)
    axes.minorticks_off()
    if len(places) > 1:
        axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    else:
        axes.set_xlim(places[0] / 2, places[0] * 2)
    axes.set_ylim(-0.5, 106)
    axes.set_yticks(range(0, 101, 20))
    axes.yaxis.grid(True, color=PALE, lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("length, and tokens read (log scale)", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)


def _label_ends(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of the curves, pushed apart so that none covers another."""
    ends.sort()
    inches = axes.get_position().height * axes.figure.get_figheight()
    space = 104 * 0.155 / inches  # a line of 9-point text in units of the axis
    places = [value for value, *_ in ends]
    for _ in range(200):  # neighbours push each other until all fit between 0 and 103
        for k in range(len(places) - 1):
            overlap = space - (places[k + 1] - places[k])
            if overlap > 0:
                places[k] -= overlap / 2
                places[k + 1] += overlap / 2
        places = [min(103.0, max(0.0, y)) for y in places]
    right = axes.get_xlim()[1]
    for (_, name, colour), y in zip(ends, places, strict=True):
        axes.annotate(
            name, (right, y), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=9, color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def learning_curves(metrics: Path, path: Path, *, title: str = "") -> list[Path]:
    """Accuracy per task (top) and loss (bottom) against training steps, from `metrics.jsonl`; the
    stages of the curriculum as bands; validation as dots. Of a task that models a language nats per
    token stand beside the loss; where no other task is, there is no top. Raises ReportError for a
    file without a training step."""
    lines, checks = read_metrics(metrics)
    tasks = sorted({t for line in lines for t in _tasks(line)}, key=task_order)
    figure, plots = canvas(7.2, 5.2 if tasks else 3.2, 2 if tasks else 1, 1)
    top, bottom = plots if tasks else (plots, plots)
    smooth = max(1, len(lines) // 60)
    ends = []
    for i, task in enumerate(tasks):
        key = f"accuracy/{task}"
        points = [(x["step"], 100 * x[key]) for x in lines if key in x]
        dots = [(x["step"], 100 * x[key]) for x in checks if key in x]
        x, y = [p[0] for p in points], [p[1] for p in points]
        colour = COLOURS[i % len(COLOURS)]
        if smooth > 1:
            top.plot(x, y, color=colour, lw=0.6, alpha=0.25)
        y = _running_mean(y, smooth)
        top.plot(x, y, color=colour, lw=1.8)
        top.plot([p[0] for p in dots], [p[1] for p in dots], "D", color=colour, ms=4.5, mec="white")
        ends.append((y[-1], task.upper(), colour))
    loss = [(x["step"], x["loss"]) for x in lines]
    if smooth > 1:
        bottom.plot(*zip(*loss, strict=True), color=INK, lw=0.6, alpha=0.25)
    bottom.plot(
        [p[0] for p in loss], _running_mean([p[1] for p in loss], smooth), color=INK, lw=1.6
    )
    low, high = min(p[1] for p in loss), max(p[1] for p in loss)
    if 0 < 10 * low < high:
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    _nats_curves(bottom, lines, checks, smooth, len(tasks))
    steps = [x["step"] for x in lines]
    for axes in (top, bottom):
        axes.set_xlim(0, max(steps) * 1.005 + 1)
        axes.yaxis.grid(True, color=PALE, lw=0.8)
        axes.set_axisbelow(True)
    if tasks:
        top.set_ylim(-0.5, 104)
        top.set_ylabel("accuracy in training, %", fontsize=9)
        _label_ends(top, ends)
    if checks:
        top.plot([], [], "D", color=GREY, ms=4.5, label="validation (mean over lengths)")
        top.legend(loc="lower left" if tasks else "upper right", fontsize=8)
    _stage_bands((top, bottom) if tasks else (bottom,), lines)
    bottom.set_ylabel("loss (nats per token)", fontsize=9)
    bottom.set_xlabel("training step", fontsize=9)
    top.set_title(figure_title("Learning curves", title), pad=18)
    return save(figure, path, pdf=True)


def _nats_curves(
    axes: Any,
    lines: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    smooth: int,
    taken: int,
) -> None:
    """Nats per token of each task that models a language, in colours after the `taken` ones;
    validation as dots."""
    names = sorted({name for line in lines for name in line.get("nats_per_token", {})})
    for i, name in enumerate(names):
        colour = COLOURS[(taken + i) % len(COLOURS)]
        points = [(x["step"], found[name]) for x in lines if name in (found := _nats(x))]
        dots = [(x["step"], found[name]) for x in checks if name in (found := _nats(x))]
        values = _running_mean([p[1] for p in points], smooth)
        axes.plot([p[0] for p in points], values, color=colour, lw=1.6, label=name)
        axes.plot([p[0] for p in dots], [p[1] for p in dots], "D", color=colour, ms=4.5, mec="w")
    if names:
        axes.legend(loc="upper right", fontsize=8)


def _nats(line: Mapping[str, Any]) -> dict[str, float]:
    """Nats per token by task: of a training line, or means over lengths of a validation line."""
    checked = line.get("validation_nats", {})
    return line.get("nats_per_token") or {t: mean(list(v.values())) for t, v in checked.items()}


def read_metrics(metrics: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training lines, validation lines) of `metrics.jsonl` in order of steps, flat:
    "step", "stage", "loss", "accuracy/TASK", …. In the file, a training line has
    "accuracy": {task: rate} and a validation line "validation": {task: {length: rate}} (the mean
    over lengths is taken). After a resume the later line of a step counts; a line cut short by a
    kill is left out. Raises ValueError where there is no training line."""
    train: dict[int, dict[str, Any]] = {}
    checks: dict[int, dict[str, Any]] = {}
    for text in Path(metrics).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "step" not in line:
            continue
        if isinstance(line.get("validation"), dict):
            rates = {t: mean(list(v.values())) for t, v in line["validation"].items() if v}
            checks[int(line["step"])] = line | {f"accuracy/{t}": v for t, v in rates.items()}
        elif isinstance(line.get("accuracy"), dict) and "loss" in line:
            rates = line["accuracy"]
            train[int(line["step"])] = line | {f"accuracy/{t}": v for t, v in rates.items()}
    if not train:
        raise ReportError(f"{metrics} holds no training step yet: nothing to draw.")
    return [train[step] for step in sorted(train)], [checks[step] for step in sorted(checks)]


def _tasks(line: Mapping[str, Any]) -> list[str]:
    """The tasks whose accuracy a line holds (auxiliary questions are none)."""
    found = (k.removeprefix("accuracy/") for k in line if k.startswith("accuracy/"))
    return [t for t in found if not t.startswith("aux")]


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over the last `width` values."""
    return [mean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def _stage_bands(plots: Sequence[Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """One band per stage; its segments written above the top plot."""
    starts: list[tuple[int, str]] = []  # (last step before the stage, which stage)
    before = 0
    for line in lines:
        key = f"{line.get('stage', '')}/{line.get('segments', '')}"
        if not starts or starts[-1][1] != key:
            starts.append((before, key))
        before = line["step"]
    last = lines[-1]["step"]
    for k, (begin, key) in enumerate(starts):
        end = starts[k + 1][0] if k + 1 < len(starts) else last
        segments = key.split("/")[1]
        if k % 2 == 0:
            for axes in plots:
                axes.axvspan(begin, end, color="#F4F6F8", lw=0, zorder=0)
        if segments and segments != "None" and end - begin > 0.035 * last:
            plots[0].text(
                (begin + end) / 2, 1.01, f"{segments} seg", ha="center", va="bottom",
                fontsize=7.5, color=GREY, transform=plots[0].get_xaxis_transform(),
            )  # fmt: skip


def depth_curves(
    results: Sequence[EvalResult], path: Path, *, bins: int = 5, title: str = ""
) -> list[Path]:
    """Accuracy against where in the text the last supporting fact stands (0 the start, 1 the end):
    one small plot per task, one line per length, Wilson bars. A fifth of the text with fewer than
    FEW questions has no point. Results without depths are left out; no file where none has any."""
    known = [r for r in results if r.depths]
    if not known:
        return []
    tasks, order = tasks_and_lengths(known)
    columns = 2 if len(tasks) in (2, 4) else min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, grid = canvas(3.6 * columns + 0.6, 2.8 * rows + 0.9, rows, columns)
    flat = list(grid.ravel()) if hasattr(grid, "ravel") else [grid]
    for place, (axes, task) in enumerate(zip(flat, tasks, strict=False)):
        for k, length in enumerate(order):
            for r in known:
                if (r.task, r.length) != (task, length):
                    continue
                points = [p for p in depth_bins(r.depths, bins) if p[4] >= FEW]
                colour = DEPTHS[round((len(DEPTHS) - 1) * (k + 1) / len(order))]
                x = [p[0] + (k - len(order) / 2) * 0.06 / bins for p in points]
                y = [100 * p[1] for p in points]
                bars = [[max(0.0, 100 * (p[1] - p[2])) for p in points],
                        [max(0.0, 100 * (p[3] - p[1])) for p in points]]  # fmt: skip
                axes.errorbar(x, y, yerr=bars, fmt="o-", ms=3.5, lw=1.6, elinewidth=0.8,
                              color=colour, label=length)  # fmt: skip
        axes.set_title(task.upper())
        if place + columns >= len(tasks):
            axes.set_xlabel("depth (0: start of the text, 1: its end)", fontsize=8)
        if place % columns == 0:
            axes.set_ylabel("accuracy, %", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.5, 106)
        axes.yaxis.grid(True, color=PALE, lw=0.8)
    for axes in flat[len(tasks) :]:
        axes.set_visible(False)
    handles, labels = flat[0].get_legend_handles_labels()
    first = {next(iter(r.right)) for r in known}
    rule = first.pop() if len(first) == 1 else "the first one of each task"
    note = footnote(known, rule) + f" · a point: {FEW} questions or more · bars: 95 % Wilson"
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)),
                  fontsize=8.5, title_fontsize=7, title=wrap_note(note, 34 * columns))  # fmt: skip
    figure.suptitle(figure_title("Accuracy against depth of the last supporting fact", title),
                    fontweight="bold", x=0.01, ha="left")  # fmt: skip
    return save(figure, path, pdf=True)


def depth_bins(
    points: Sequence[tuple[float, bool]], bins: int
) -> list[tuple[float, float, float, float, int]]:
    """(middle of the bin, accuracy, Wilson low and high, samples) of each bin that holds one."""
    held: list[list[bool]] = [[] for _ in range(bins)]
    for depth, right in points:
        held[min(bins - 1, int(depth * bins))].append(right)
    return [
        ((b + 0.5) / bins, mean(h), *wilson(sum(h), len(h)), len(h))
        for b, h in enumerate(held)
        if h
    ]
