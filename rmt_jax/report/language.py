"""How well a model predicts texts: the table, the numbers and the curve of a `PerplexityResult`.

| file           | holds                                                             |
|----------------|-------------------------------------------------------------------|
| perplexity.csv | a row for all tokens, and one for each bin of each view           |
| perplexity.json| the same, with the sums of each text                              |
| perplexity     | the curves, PNG and PDF: bits per byte with the memory and without |
"""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rmt_jax.files import write_text
from rmt_jax.report.figures import (
    COLOURS,
    GREY,
    PALE,
    canvas,
    figure_title,
    save,
    short_number,
)
from rmt_jax.results import PerplexityResult, TextBin

COLUMNS = (
    "texts_of", "view", "start", "stop", "texts", "tokens", "bytes", "bits_per_byte", "error",
    "perplexity", "reset_bits_per_byte", "reset_error", "reset_perplexity", "gain", "gain_error",
    "segment_tokens", "tokenizer",
)  # fmt: skip
# View -> what the horizontal axis says.
VIEWS = {
    "position": "place in the text, tokens",
    "segment": "number of the segment",
    "context": "tokens of its own segment that a prediction sees",
}


def write(result: PerplexityResult, folder: Path, *, title: str = "") -> list[Path]:
    """Numbers and curves into `folder`; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"perplexity.csv": csv_text(result), "perplexity.json": json_text(result)}
    for name, text in files.items():
        write_text(folder / name, text)
    return [*(folder / name for name in files), *draw(result, folder / "perplexity.png", title)]


def csv_text(result: PerplexityResult) -> str:
    """The first row is of all tokens."""
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for one in (result.total, *result.bins):
        rows.writerow(
            {name: _rounded(value) for name, value in row(result, one).items() if name in COLUMNS}
        )
    return text.getvalue()


def json_text(result: PerplexityResult) -> str:
    found = {
        "name": result.name,
        "tokenizer": result.tokenizer,
        "segment_tokens": result.segment_tokens,
        "bins": [row(result, one) for one in (result.total, *result.bins)],
        "texts": [{"name": name} | dataclasses.asdict(sums) for name, sums in result.texts],
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def row(result: PerplexityResult, one: TextBin) -> dict[str, Any]:
    """One line of perplexity.csv, unrounded. `stop` is the place behind the last; empty: none."""
    return {
        "texts_of": result.name,
        "view": one.view,
        "start": one.start,
        "stop": one.stop or None,
        "texts": one.texts,
        "tokens": one.sums.tokens,
        "bytes": one.sums.bytes,
        "nats": one.sums.nats,
        "reset_nats": one.sums.reset_nats,
        "bits_per_byte": one.bits_per_byte,
        "error": one.error,
        "perplexity": one.perplexity,
        "reset_bits_per_byte": one.reset_bits_per_byte,
        "reset_error": one.reset_error,
        "reset_perplexity": one.reset_perplexity,
        "gain": one.gain,
        "gain_error": one.gain_error,
        "segment_tokens": result.segment_tokens,
        "tokenizer": result.tokenizer,
    }


def table(result: PerplexityResult) -> str:
    """For the terminal: all tokens, by place in the text, and by what is seen of the segment."""
    head = ("", "tokens", "bits/byte", "± s.e.", "perplexity", "reset", "perplexity", "saved", "±")
    lines = [_line(head), "-" * len(_line(head)), _numbers("all", result.total)]
    for view, place in VIEWS.items():
        lines += ["", f"{place}:"]
        lines += [_numbers(_places(one), one) for one in result.view(view)]
    some = "1 text" if len(result.texts) == 1 else f"{len(result.texts):,} texts"
    lines += [
        "",
        f"{some} of {result.name} · {result.total.sums.bytes:,} bytes in"
        f" {result.total.sums.tokens:,} tokens of {result.tokenizer} · segments of"
        f" {result.segment_tokens:,} tokens",
        "reset: bits per byte with the memory reset before each segment; saved: what memory saves"
        if result.total.gain is not None
        else "there is no control: the memory was not reset",
        "s.e.: standard error over texts"
        if len(result.texts) > 1
        else "one text: no standard errors",
    ]
    return "\n".join(lines)


def _numbers(name: str, one: TextBin) -> str:
    return _line(
        (
            name,
            f"{one.sums.tokens:,}",
            _shown(one.bits_per_byte, 4),
            _shown(one.error, 4),
            _shown(one.perplexity, 2),
            _shown(one.reset_bits_per_byte, 4),
            _shown(one.reset_perplexity, 2),
            _shown(one.gain, 4),
            _shown(one.gain_error, 4),
        )
    )


def _line(cells: Iterable[str]) -> str:
    widths = (15, 11, 10, 8, 12, 8, 12, 8, 8)
    pairs = zip(cells, widths, strict=True)
    return "".join(
        f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
        for i, (cell, width) in enumerate(pairs)
    ).rstrip()


def _places(one: TextBin) -> str:
    last = one.stop - 1
    return f"{one.start:,}" if last == one.start else f"{one.start:,}-{last:,}"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else "" if value is None else value


def draw(result: PerplexityResult, path: Path, title: str = "") -> list[Path]:
    """Bits per byte against the place in the text, and against what a prediction sees of its own
    segment (both log axes), with the memory and with it reset; bands of two standard errors."""
    figure, plots = canvas(9.6, 4.2, 1, 2)
    for axes, view in zip(plots, ("position", "context"), strict=True):
        bins = result.view(view)
        x = [(one.start * (one.stop - 1)) ** 0.5 for one in bins]  # the middle of a log axis
        curves: list[tuple[str, str, Any, str, str]] = [
            ("with memory", COLOURS[0], "-", "bits_per_byte", "error")
        ]
        if result.total.gain is not None:
            curves.append(
                ("memory reset", GREY, (0, (1, 1.5)), "reset_bits_per_byte", "reset_error")
            )
        for name, colour, style, value, error in curves:
            y = [getattr(one, value) for one in bins]
            wide = [2 * (getattr(one, error) or 0.0) for one in bins]
            low = [a - b for a, b in zip(y, wide, strict=True)]
            high = [a + b for a, b in zip(y, wide, strict=True)]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(x, y, marker="o", color=colour, ls=style, lw=1.8, ms=4, label=name)
        axes.set_xscale("log")
        ticks = x[:: max(1, -(-len(x) // 8))]
        axes.set_xticks(ticks, [short_number(at) for at in ticks])
        axes.minorticks_off()
        axes.yaxis.grid(True, color=PALE, lw=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(VIEWS[view], fontsize=9)
    plots[0].set_ylabel("bits per byte", fontsize=9)
    plots[0].set_title(figure_title("Bits per byte", title or result.name))
    plots[1].legend(loc="best", fontsize=8.5, handlelength=2.6)
    errors = " · bands: two standard errors over texts" if len(result.texts) > 1 else ""
    figure.supxlabel(
        f"{result.total.sums.tokens:,} tokens of {result.tokenizer} · segments of"
        f" {result.segment_tokens:,} tokens · texts: {len(result.texts):,}{errors}",
        fontsize=7,
        color="#6B6B6B",
    )
    return save(figure, path, pdf=True)
