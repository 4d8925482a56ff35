"""One report of many parts: Markdown beside its pictures, and HTML with the pictures inside."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax import report
from rmt_jax.models.costs import memory_of
from rmt_jax.report import figures
from rmt_jax.scores import Cell

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2.5rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e6e6e6; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
p.note { color: #6b6b6b; font-size: 13px; }
"""


def write(
    folder: Path,
    parts: Sequence[tuple[str, str, Sequence[Cell]]],
    model: Any,
    *,
    rule: str = "",
) -> list[Path]:
    """report.md and report.html in `folder`. A part is (title, what it is, its cells); its pictures
    are those that `report.write` made in the folder of its name."""
    lines = ["# Evaluation report", "", about(model), ""]
    body = [f"<h1>Evaluation report</h1><p>{html.escape(about(model))}</p>"]
    summary = overview(parts)
    if summary:
        lines += ["## Robustness", "", summary]
        body += ["<h2>Robustness</h2>", as_html(summary)]
    for title, text, cells in parts:
        if not cells:  # it could not be had; the text says why
            lines += [f"## {title}", "", text, ""]
            body.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")
            continue
        name = title.lower().replace(" ", "_")
        main = report.main_rule(cells, rule)
        table = report.markdown(cells, main)
        lines += [f"## {title}", "", text, "", table]
        body += [f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>", as_html(table)]
        long = len({c.length for c in cells}) > 2  # the others' curves lie in their folders
        for picture in ("heatmap", "lengths", "depths") if long else ("heatmap",):
            file = folder / name / f"{picture}.png"
            if not file.exists():
                continue
            lines += [f"![{title}, {picture}]({name}/{picture}.png)", ""]
            data = base64.b64encode(file.read_bytes()).decode()
            label = html.escape(f"{title}, {picture}")
            body.append(f'<p><img alt="{label}" src="data:image/png;base64,{data}"></p>')
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation report'
        f"</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    report.replace(folder / "report.md", "\n".join(lines))
    report.replace(folder / "report.html", document)
    return [folder / "report.md", folder / "report.html"]


def overview(parts: Sequence[tuple[str, str, Sequence[Cell]]]) -> str:
    """Markdown: the mean over tasks of the unchanged texts and of each perturbation, at the lengths
    that these have; '' where nothing was perturbed."""
    changed = [cells for _, _, cells in parts if cells and cells[0].perturb]
    if not changed:
        return ""
    tasks, lengths = figures.names(changed[0])
    plain = [c for _, _, cells in parts for c in cells if not c.perturb and c.task in tasks]
    lines = ["| | " + " | ".join(lengths) + " | score |", "|---" * (len(lengths) + 2) + "|"]
    for cells in (plain, *changed):
        here = [c for c in cells if c.length in lengths]
        if not here:
            continue
        rule, line = report.main_rule(here), []
        for length in lengths:
            rates = [c.accuracy(rule) for c in here if c.length == length]
            line.append(f"{100 * figures.mean(rates):.1f}" if len(rates) == len(tasks) else "")
        lines.append(f"| {here[0].perturb or 'unchanged'} | {' | '.join(line)} | {rule} |")
    return "\n".join(lines) + f"\n\nMean over {', '.join(tasks)}, per cent.\n"


def about(model: Any) -> str:
    """What was evaluated, in a sentence."""
    m, p, d = model.config.model, model.config.prompt, model.config.data
    longest = model.config.longest_segments
    return (
        f"Cell {m.cell}, {m.layers} layers of width {m.width}, {memory_of(m)}, "
        f"segments of {m.segment_tokens} tokens; trained on {', '.join(d.tasks)} up to {longest} "
        f"segments ({longest * m.segment_tokens:,} tokens); task prompt: {p.source}, seen at: "
        f"{p.place}; tokenizer: {model.tokenizer.name}."
    )


def as_html(markdown: str) -> str:
    """Our own Markdown tables as HTML: rows of cells, bold, and lines of text."""
    out: list[str] = []
    rows: list[str] = []

    def close() -> None:
        if rows:
            out.append(f"<table>{''.join(rows)}</table>")
            rows.clear()

    for line in markdown.splitlines():
        if line.startswith("|"):
            if set(line) <= set("|-"):
                continue
            kind = "td" if rows else "th"
            cells = (bold(c.strip()) for c in line.strip("|").split("|"))
            rows.append(f"<tr>{''.join(f'<{kind}>{c}</{kind}>' for c in cells)}</tr>")
        else:
            close()
            if line.strip():
                out.append(f'<p class="note">{bold(line.strip())}</p>')
    close()
    return "".join(out)


def bold(text: str) -> str:
    text = html.escape(text)
    return f"<b>{text[2:-2]}</b>" if text.startswith("**") and text.endswith("**") else text
