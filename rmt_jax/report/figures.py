"""The look of our pictures, and the heat map (tasks × lengths); `curves.py` draws the lines.

Every function takes plain numbers and writes PNG and PDF files. matplotlib is imported inside, with
its file-only backend: no display is needed, and training does not pay for the import.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax.files import naming
from rmt_jax.results import EvalResult

# Okabe and Ito's colours, which the colour-blind tell apart, in an order that reads well on white.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#6A3D9A",
    "#8DB33A", "#B2182B",
)  # fmt: skip
INK, GREY, PALE = "#222222", "#8A8A8A", "#E6E6E6"


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of our look, in inches: (figure, axes)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11,
            "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
            "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.grid": False, "figure.facecolor": "white", "pdf.fonttype": 42,
            "legend.frameon": False, "lines.solid_capstyle": "round",
        }
    )  # fmt: skip
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained")
    return figure, axes


def save(figure: Any, path: Path, *, pdf: bool = False) -> list[Path]:
    """Write `path` as PNG, and as PDF beside it; close the figure."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(".png")] + ([path.with_suffix(".pdf")] if pdf else [])
    for each in paths:
        # No date inside: the same numbers give the same file.
        metadata = {"CreationDate": None} if each.suffix == ".pdf" else {"Software": None}
        with naming(each):
            figure.savefig(each, dpi=200, metadata=metadata)
    plt.close(figure)
    return paths


def tasks_and_lengths(results: Sequence[EvalResult]) -> tuple[list[str], list[str]]:
    """Tasks in order of their number, lengths in order of the tokens read."""
    tasks = sorted({r.task for r in results}, key=task_order)
    tokens: dict[str, list[float]] = {}
    for r in results:
        tokens.setdefault(r.length, []).append(r.tokens)
    return tasks, sorted(tokens, key=lambda n: sum(tokens[n]) / len(tokens[n]))


def task_order(task: str) -> tuple[int, str]:
    digits = "".join(c for c in task if c.isdigit())
    return (int(digits) if digits else 10**6, task)


def short_number(tokens: float) -> str:
    """1,234,567 -> 1.2M: for axes."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if tokens >= size * 0.9995:
            text = f"{tokens / size:.3g}"
            return text + unit
    return f"{tokens:.0f}"


def heatmap(
    results: Sequence[EvalResult], path: Path, *, rule: str = "official", title: str = ""
) -> list:
    """Tasks × lengths, accuracy in per cent in each square, the majority answer's below it; the
    mean over tasks in a row of its own; a line after the longest trained length."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    tasks, lengths = tasks_and_lengths(results)
    at = {(r.task, r.length): r for r in results}
    rows = [*tasks, "mean"] if len(tasks) > 1 else tasks
    values = np.full((len(rows), len(lengths)), np.nan)
    for i, task in enumerate(tasks):
        for j, length in enumerate(lengths):
            if (task, length) in at:
                values[i, j] = 100 * at[task, length].accuracy(rule)
    if len(tasks) > 1:
        for j, length in enumerate(lengths):
            here = [at[task, length].accuracy(rule) for task in tasks if (task, length) in at]
            if len(here) == len(tasks):  # a mean over other tasks would mislead
                values[-1, j] = 100 * mean(here)  # in the table's order: rounded alike
    colours = LinearSegmentedColormap.from_list(
        "accuracy", ["#FBE3D6", "#FBF3DC", "#CFE8DF", "#6FB7B0", "#1F7A8C", "#0B4F6C"]
    )
    gap = 0.14  # the mean stands apart
    width = max(4.6, 1.6 + 0.82 * len(lengths))
    figure, axes = canvas(width, 1.75 + 0.56 * len(rows))
    for i, row in enumerate(rows):
        y = i + (gap if row == "mean" and len(tasks) > 1 else 0)
        for j, length in enumerate(lengths):
            v = values[i, j]
            if np.isnan(v):
                axes.add_patch(_square(j, y, "white", PALE))
                continue
            axes.add_patch(_square(j, y, colours(v / 100), "white"))
            dark = v > 72  # where white reads better than ink
            axes.text(
                j, y - 0.1, "100" if v > 99.95 else f"{v:.1f}", ha="center", va="center",
                fontsize=12, fontweight="bold", color="white" if dark else INK,
            )  # fmt: skip
            own = [r.majority for r in results if r.length == length and row in (r.task, "mean")]
            axes.text(
                j, y + 0.27, f"majority {100 * mean(own):.0f}", ha="center", va="center",
                fontsize=6.5, color="#DCECEF" if dark else "#4A4A4A",
            )  # fmt: skip
    trained_lengths = {r.length for r in results if r.trained}
    trained = [j for j, n in enumerate(lengths) if n in trained_lengths]
    bottom = len(rows) - 0.5 + (gap if len(tasks) > 1 else 0)
    if trained and trained[-1] + 1 < len(lengths):
        axes.plot([trained[-1] + 0.5] * 2, [-0.5, bottom], color="#D55E00", lw=2)
        axes.text(
            trained[-1] + 0.46, -0.56, "trained to here", ha="right", va="bottom", fontsize=7.5,
            color="#D55E00",
        )  # fmt: skip
    means = {n: mean([r.tokens for r in results if r.length == n]) for n in lengths}
    axes.set_xticks(
        range(len(lengths)),
        [f"{n}\n{short_number(means[n])} tok" if means[n] else n for n in lengths],
    )
    ticks = [i + (gap if r == "mean" and len(tasks) > 1 else 0) for i, r in enumerate(rows)]
    axes.set_yticks(ticks, [r.upper() if r != "mean" else "mean" for r in rows])
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(bottom, -0.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(figure_title("Accuracy, task × length", title), pad=18)
    note = wrap_note(footnote(results, rule), int(14 * width))
    axes.set_xlabel(note, fontsize=7.5, color="#6B6B6B", labelpad=8)
    return save(figure, path, pdf=True)


def _square(x: float, y: float, face: Any, edge: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor=edge, linewidth=1.5)


def footnote(results: Sequence[EvalResult], rule: str) -> str:
    """What is counted, how and by whom, in one line: it stands under every picture and table."""
    counts = sorted({r.samples for r in results})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    parts = [f"score: {rule}, per cent", f"{many} questions per task and length"]
    parts += [f"{d} decoding" for d in sorted({r.decoding for r in results})]
    parts += ["asked in the chat template"] if any(r.chat for r in results) else []
    tokenizers = sorted({r.tokenizer for r in results if r.tokenizer})
    if tokenizers:
        rates = [r.characters / r.tokens for r in results if r.tokens and r.characters]
        each = f" ({mean(rates):.1f} characters each)" if rates else ""
        parts.append(f"tokens of {', '.join(tokenizers)}{each}")
    others = sorted({r.counted_by for r in results if r.counted_by and r.counted_by != r.tokenizer})
    if others:
        parts.append(f"lengths counted by {', '.join(others)}")
    return " · ".join(parts)


def figure_title(what: str, name: str) -> str:
    return f"{what}: {name}" if name else what


def wrap_note(note: str, columns: int) -> str:
    """The note on as many lines as its parts need."""
    lines = [""]
    for part in note.split(" · "):
        if lines[-1] and len(lines[-1]) + len(part) + 3 > columns:
            lines.append("")
        lines[-1] += f" · {part}" if lines[-1] else part
    return "\n".join(lines)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
