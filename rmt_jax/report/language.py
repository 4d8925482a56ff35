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
FEW = 100  # tokens; fewer make no point of a curve
# View -> what the horizontal axis says.
VIEWS = {
    "position": "place in the text, tokens",
    "segment": "number of the segment",
    "place": "place in its segment of the token that predicts",
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
    """Bits per byte against the place in the text, and against the place in the segment (a point
    for each bin, which doubles), with the memory and with it reset; below, what the memory saves,
    with a band of two standard errors of the difference text by text. A bin of few tokens has no
    point."""
    control = result.total.gain is not None
    figure, plots = canvas(9.6, 6.4 if control else 3.8, 2 if control else 1, 2)
    rows = plots if control else [plots]
    for column, view in enumerate(("position", "place")):
        bins = [one for one in result.view(view) if one.sums.tokens >= FEW] or result.view(view)
        x = list(range(len(bins)))
        top, bottom = rows[0][column], rows[-1][column]
        if control:
            y = [one.reset_bits_per_byte for one in bins]
            top.plot(x, y, "o", color=GREY, ls=(0, (1, 1.5)), lw=1.8, ms=4, label="memory reset")
            _saved(bottom, x, bins)
        y = [one.bits_per_byte for one in bins]
        top.plot(x, y, "o-", color=COLOURS[0], lw=1.8, ms=4, label="with memory")
        for axes in (top, bottom):
            step = max(1, -(-len(x) // 8))
            names = [_short(one) for one in bins]
            axes.set_xticks(x[::step], names[::step], fontsize=8)
            axes.yaxis.grid(True, color=PALE, lw=0.8)
            axes.set_axisbelow(True)
        bottom.set_xlabel(VIEWS[view], fontsize=9)
    rows[0][0].set_ylabel("bits per byte", fontsize=9)
    rows[0][0].set_title(figure_title("Bits per byte", title or result.name))
    if control:
        rows[0][1].legend(loc="best", fontsize=8.5, handlelength=2.6)
        rows[1][0].set_ylabel("saved by the memory", fontsize=9)
    band = " · band: two standard errors" if control and len(result.texts) > 1 else ""
    figure.supxlabel(
        f"{result.total.sums.tokens:,} tokens of {result.tokenizer} · segments of"
        f" {result.segment_tokens:,} tokens · texts: {len(result.texts):,}{band}",
        fontsize=7,
        color="#6B6B6B",
    )
    return save(figure, path, pdf=True)


def _saved(axes: Any, x: list[int], bins: list[TextBin]) -> None:
    gain = [one.gain or 0.0 for one in bins]
    wide = [2 * (one.gain_error or 0.0) for one in bins]
    low, high = ([g + sign * w for g, w in zip(gain, wide, strict=True)] for sign in (-1, 1))
    axes.axhline(0, color=GREY, lw=0.8)
    axes.fill_between(x, low, high, color=COLOURS[2], alpha=0.15, lw=0)
    axes.plot(x, gain, "o-", color=COLOURS[2], lw=1.8, ms=4)


def _short(one: TextBin) -> str:
    last = one.stop - 1
    if last == one.start:
        return short_number(last)
    return f"{short_number(one.start)}-{short_number(one.stop if last >= 1000 else last)}"
