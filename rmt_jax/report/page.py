"""One report of many parts: Markdown beside its pictures, and HTML with the pictures inside."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rmt_jax import report
from rmt_jax.files import write_text
from rmt_jax.report import document, figures
from rmt_jax.results import EvalResult

FOOT = ("tokens", "characters")  # rows that say what was read; sorting leaves them below


class Section(NamedTuple):
    """One part of the report. Its pictures are those that `report.write` made in `folder_name`."""

    title: str
    text: str  # what it measures
    results: Sequence[EvalResult]  # none: it was left out, and `text` says why

    @property
    def folder_name(self) -> str:
        return self.title.lower().replace(" ", "_")


def write(
    folder: Path, sections: Sequence[Section], description: str, *, rule: str = ""
) -> list[Path]:
    """report.md and report.html in `folder`; `description` says what was evaluated."""
    lines = ["# Evaluation report", "", description, ""]
    body = [f"<h1>Evaluation report</h1><p>{html.escape(description)}</p>"]
    robustness = robustness_table(sections)
    if robustness:
        lines += ["## Robustness", "", robustness]
        body += ["<h2>Robustness</h2>", markdown_to_html(robustness)]
    for section in sections:
        title, text, results = section
        lines += [f"## {title}", "", text, ""]
        body.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")
        if not results:
            continue
        table = report.markdown(results, report.main_rule(results, rule))
        lines.append(table)
        body.append(markdown_to_html(table))
        # Curves of two lengths say no more than the table.
        many = len({r.length for r in results}) > 2
        for picture in ("heatmap", "lengths", "depths") if many else ("heatmap",):
            file = folder / section.folder_name / f"{picture}.png"
            if not file.exists():
                continue
            lines += [f"![{title}, {picture}]({section.folder_name}/{picture}.png)", ""]
            data = base64.b64encode(file.read_bytes()).decode()
            label = html.escape(f"{title}, {picture}")
            body.append(f'<p><img alt="{label}" src="data:image/png;base64,{data}"></p>')
    whole = document.page("Evaluation report", "".join(body), ("tables.js",))
    write_text(folder / "report.md", "\n".join(lines))
    write_text(folder / "report.html", whole)
    return [folder / "report.md", folder / "report.html"]


def robustness_table(sections: Sequence[Section]) -> str:
    """Markdown: the mean over tasks of the unchanged texts and of each perturbation, at the lengths
    that these have; empty where nothing was perturbed."""
    perturbed = [s.results for s in sections if s.results and s.results[0].perturb]
    if not perturbed:
        return ""
    tasks, lengths = figures.tasks_and_lengths(perturbed[0])
    unchanged = [r for s in sections for r in s.results if not r.perturb and r.task in tasks]
    lines = ["| | " + " | ".join(lengths) + " | score |", "|---" * (len(lengths) + 2) + "|"]
    for results in (unchanged, *perturbed):
        here = [r for r in results if r.length in lengths]
        if not here:
            continue
        rule, line = report.main_rule(here), []
        for length in lengths:
            rates = [r.accuracy(rule) for r in here if r.length == length]
            line.append(f"{100 * figures.mean(rates):.1f}" if len(rates) == len(tasks) else "")
        lines.append(f"| {here[0].perturb or 'unchanged'} | {' | '.join(line)} | {rule} |")
    return "\n".join(lines) + f"\n\nMean over {', '.join(tasks)}, per cent.\n"


def markdown_to_html(markdown: str) -> str:
    """HTML of the Markdown that our tables use: tables (which a script makes sortable), bold
    entries, lines of text."""
    out: list[str] = []
    rows: list[str] = []

    def close_table() -> None:
        if rows:
            foot = [row for row in rows if row.startswith(tuple(f"<tr><td>{x}<" for x in FOOT))]
            body = "".join(row for row in rows[1:] if row not in foot)
            table = f"<thead>{rows[0]}</thead><tbody>{body}</tbody><tfoot>{''.join(foot)}</tfoot>"
            out.append(f'<div class="wide"><table class="sortable">{table}</table></div>')
            rows.clear()

    for line in markdown.splitlines():
        if line.startswith("|"):
            if set(line) <= set("|-"):
                continue
            kind = "td" if rows else "th"
            entries = (bold(entry.strip()) for entry in line.strip("|").split("|"))
            rows.append(f"<tr>{''.join(f'<{kind}>{x}</{kind}>' for x in entries)}</tr>")
        else:
            close_table()
            if line.strip():
                out.append(f'<p class="note">{bold(line.strip())}</p>')
    close_table()
    return "".join(out)


def bold(text: str) -> str:
    text = html.escape(text)
    return f"<b>{text[2:-2]}</b>" if text.startswith("**") and text.endswith("**") else text
