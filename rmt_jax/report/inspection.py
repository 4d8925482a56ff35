"""The picture of one text in memory: its changes, and the tokens that were written."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report import figures

SUPPORTING = "#D55E00"
WORDS = 48  # tokens written out below the last panel
POINTS = 4000  # tokens on an axis; of more, the highest of each stretch is drawn


def draw_trace(
    trace: Any,
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[int, int]],
    supporting: Sequence[int],
    decode: Callable[[int], str],
) -> list[Path]:
    """Three panels: change of memory at each segment; attention or gates over the whole text; the
    same with its words, where the last supporting fact stands. The first panel alone for a memory
    without attention or gates. Writes PNG and PDF.

    Args:
      trace: an `evaluation.tracing.Trace` of S segments of L tokens.
      facts: spans among the S * L places, (first, behind the last).
      supporting: which of the facts the answer rests on.
      decode: the text of a token.
    """
    segments, size = trace.mask.shape
    rows = trace.change.shape[1]
    with_tokens = trace.token_values.shape[1] > 0
    height = 2.2 + 0.11 * rows + (4.2 if with_tokens else 0)
    figure, grid = figures.canvas(9.0, min(height, 11), 3 if with_tokens else 1, 1)
    panels = list(grid) if with_tokens else [grid]
    figure.suptitle(textwrap.fill(title, 88), fontweight="bold", x=0.01, ha="left")
    image = _draw_change(panels[0], trace)
    figure.colorbar(image, ax=panels[0], pad=0.01, label="relative change", aspect=12, extend="max")
    for k, (start, stop) in enumerate(facts):
        panels[0].plot(
            [start / size, stop / size], [-0.5 - 0.035 * rows] * 2,
            color=SUPPORTING if k in supporting else figures.GREY,
            lw=5 if k in supporting else 3, clip_on=False, solid_capstyle="butt",
        )  # fmt: skip
    panels[0].set_xlabel(
        "segment (bars above: facts; orange: those that the answer rests on)", fontsize=9
    )
    if with_tokens:
        _draw_whole_text(panels[1], trace, facts, supporting)
        last = max((facts[k][0] for k in supporting), default=0)
        marked = [facts[k] for k in supporting]
        image = _draw_words(panels[2], trace, min(last // size, segments - 1), last, marked, decode)
        label = f"{trace.value_label}, %"
        figure.colorbar(image, ax=panels[2], pad=0.01, label=label, aspect=12)
    return figures.save(figure, path, pdf=True)


def _draw_change(axes: Any, trace: Any) -> Any:
    segments, rows = trace.change.shape
    # The first segment replaces the learned start altogether; the scale is that of the others, up
    # to a change as large as what was there.
    top = min(float(trace.change[1:].max()), 1.0) if segments > 1 else None
    image = axes.imshow(
        trace.change.T, aspect="auto", cmap="BuPu", vmin=0, vmax=top, interpolation="nearest",
        extent=(0, segments, rows - 0.5, -0.5),
    )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(trace.state_row_label, fontsize=9)
    axes.set_title("change of memory at each segment", pad=16)
    return image


def _draw_whole_text(
    axes: Any, trace: Any, facts: Sequence[tuple[int, int]], supporting: Sequence[int]
) -> None:
    import numpy as np

    segments, size = trace.mask.shape
    values = trace.token_values.mean(axis=1).reshape(-1)
    step = -(-len(values) // (POINTS // 2)) if len(values) > POINTS else 1
    values = np.pad(values, (0, -len(values) % step)).reshape(-1, step).max(axis=1)
    axes.fill_between(
        np.arange(len(values)) * step / size, 100 * values, color=figures.COLOURS[0], alpha=0.85,
        lw=0,
    )  # fmt: skip
    for k, (start, stop) in enumerate(facts):
        colour = SUPPORTING if k in supporting else figures.GREY
        axes.axvspan(start / size, stop / size, color=colour, alpha=0.18, lw=0)
    axes.set_xlim(0, segments)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    mean = f" (mean over {trace.row_label}s)" if trace.token_values.shape[1] > 1 else ""
    axes.set_title(f"{trace.value_label} per token{mean}, %")
    axes.set_xlabel("segment", fontsize=9)


def _draw_words(
    axes: Any,
    trace: Any,
    segment: int,
    fact: int,
    marked: Sequence[tuple[int, int]],
    decode: Callable[[int], str],
) -> Any:
    """The tokens of `segment` around place `fact`; those of the spans `marked` stand out."""
    size = trace.mask.shape[1]
    first = max(0, min(fact - segment * size - 12, size - WORDS))
    shown = range(first, min(first + WORDS, size))
    words = [decode(int(trace.tokens[segment, n])) if trace.mask[segment, n] else "" for n in shown]
    image = axes.imshow(
        100 * trace.token_values[segment][:, first : first + len(words)], aspect="auto",
        cmap="BuPu", vmin=0, interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks(range(len(words)), [w.strip() or "·" for w in words], rotation=90, fontsize=7)
    for label, n in zip(axes.get_xticklabels(), shown, strict=True):
        if any(start <= segment * size + n < stop for start, stop in marked):
            label.set_color(SUPPORTING)
            label.set_fontweight("bold")
    axes.set_ylabel(trace.row_label, fontsize=9)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if trace.token_values.shape[1] == 1:
        axes.set_yticks([])
    axes.set_title(f"segment {segment}, where the last supporting fact stands")
    return image
