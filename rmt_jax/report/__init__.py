"""What a run leaves behind: tables and pictures of its results.

| file                      | holds                                                              |
|---------------------------|--------------------------------------------------------------------|
| summary.csv               | one row per task and length: the main score and its baselines      |
| scores.csv                | the same for each of the four scores, with Wilson intervals        |
| summary.json              | all of it, machine-readable; `read` reads it again                 |
| table.md                  | a Markdown table for a paper or README                             |
| heatmap, lengths, curves, | pictures, PNG and PDF                                              |
| depths                    |                                                                    |
"""

import csv
import io
import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rmt_jax.files import write_text
from rmt_jax.report import comparison, curves, figures
from rmt_jax.report.tables import (
    ReportError,
    csv_text,
    json_text,
    main_rule,
    markdown,
    read,
    shared_rules,
    table,
)
from rmt_jax.results import EvalResult

log = logging.getLogger(__name__)

__all__ = ["ReportError", "main_rule", "markdown", "read", "reference", "table", "write"]


def write(
    results: Sequence[EvalResult],
    folder: Path,
    *,
    title: str = "",
    rule: str = "",
    metrics: Path | None = None,
    references: bool = False,
) -> list[Path]:
    """Every table and picture of one run into `folder`; returns the files written.

    `rule` is the score of the pictures and of summary.csv (the official one, where every task has
    labels for it). `metrics` is the run's metrics.jsonl, for the learning curves.
    Raises ReportError for no results.
    """
    if not results:
        raise ReportError(
            "There is no result to report: evaluate at least one task and length first."
        )
    rule = main_rule(results, rule)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "summary.csv": csv_text(results, [rule]),
        "scores.csv": csv_text(results, shared_rules(results)),
        "summary.json": json_text(results, rule),
        "table.md": markdown(results, rule),
    }
    paths = []
    for name, text in files.items():
        write_text(folder / name, text)
        paths.append(folder / name)
    paths += figures.heatmap(results, folder / "heatmap.png", rule=rule, title=title)
    paths += curves.length_curves(results, folder / "lengths.png", rule=rule, title=title)
    if references:
        path, ours = folder / "published.png", {title or "this run": [results]}
        paths += comparison.comparison_curves(ours, path, rule=rule, references=reference())
    paths += curves.depth_curves(results, folder / "depths.png", title=title)
    if metrics is not None and metrics.exists():
        try:
            paths += curves.learning_curves(metrics, folder / "curves.png", title=title)
        except ReportError as error:  # evaluated before the first log line
            log.warning("%s", error)
    return paths


def reference() -> list[dict[str, Any]]:
    """Published results that the package carries, each with metric and source; nominal tokens."""
    file = resources.files("rmt_jax") / "assets" / "reference.csv"
    rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    return [
        dict(r) | {"tokens": float(r["tokens"] or 0), "accuracy": float(r["accuracy"])}
        for r in rows
    ]
