"""Tables say what was measured; pictures are made; runs are averaged."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from commands import exit_code

from rmt_jax import report, scores
from rmt_jax.report import __main__ as comparison
from rmt_jax.report import capacity, curves, figures, inspection, page, tables
from rmt_jax.results import EvalResult
from rmt_jax.scores import OF_LABELS as RULES

RIGHT = {"1s": 19, "4s": 18, "16s": 9}


def results(less=0, perturb=""):
    return [
        EvalResult(
            task,
            length,
            20,
            dict.fromkeys(RULES, right - less - 2 * (task == "qa2")),
            majority=0.25,
            chance=1 / 6,
            tokens=62.0 * int(length[:-1]),
            characters=250.0 * int(length[:-1]),
            tokenizer="builtin",
            reset=dict.fromkeys(RULES, 5),
            perturb=perturb,
            trained=length != "16s",
            depths=((0.1, True), (0.9, False)),
        )
        for task in ("qa2", "qa1", "qa10")
        for length, right in RIGHT.items()
    ]


def metrics(folder):
    lines = [
        {"step": s, "stage": 1 + s // 30, "loss": 2 / (s + 1), "accuracy": {"qa1": s / 60}} for s in
        range(0, 60, 10)
    ]  # fmt: skip
    lines.append({"step": 50, "validation": {"qa1": {"1s": 0.9, "2s": 0.7}}})
    file = folder / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 60, "lo')
    return file


def test_rates_and_intervals_of_a_result():
    result = EvalResult("qa1", "4k", 10, {"official": 9}, reset={"official": 2})
    assert result.accuracy() == 0.9 and result.reset_accuracy() == 0.2
    assert result.interval() == scores.wilson(9, 10)
    assert math.isnan(EvalResult("qa1", "4k", 0, {"official": 0}).accuracy())
    assert EvalResult("qa1", "4k", 1, {"official": 1}).reset_accuracy() is None


def test_heatmap_and_table_round_a_mean_alike(tmp_path, monkeypatch):
    """The mean of these is 96.35, which a sum in another order rounds the other way."""
    right = (194, 195, 200, 191, 182, 190, 199, 183, 195, 198)
    of_ten = [EvalResult(f"qa{i}", "1s", 200, {"official": n}) for i, n in enumerate(right, 1)]
    drawn, canvas = [], figures.canvas
    monkeypatch.setattr(figures, "canvas", lambda *size: drawn.append(canvas(*size)) or drawn[-1])
    figures.heatmap(of_ten, tmp_path / "heatmap")
    (_, axes), told = drawn[0], tables.table(of_ten)
    shown = [text.get_text() for text in axes.texts if "." in text.get_text()]
    assert f"mean at 1s: {shown[-1]} " in told


def test_write_makes_every_file(tmp_path):
    out = tmp_path / "results"
    paths = report.write(results(), out, metrics=metrics(tmp_path), references=True)
    names = {p.name for p in paths}
    assert {"summary.csv", "scores.csv", "summary.json", "table.md"} <= names
    for picture in ("heatmap", "lengths", "curves", "depths", "published"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG"), picture
        assert (out / f"{picture}.pdf").read_bytes().startswith(b"%PDF"), picture
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["task", "length", "score", "accuracy", "samples", "majority"]
    assert len(rows) == 9 and {r["score"] for r in rows} == {"official"}
    assert rows[0]["task"] == "qa1" and rows[0]["length"] == "1s"
    assert float(rows[0]["accuracy"]) == 0.95 and float(rows[0]["memory_reset"]) == 0.25
    assert (rows[0]["tokens"], rows[0]["characters"], rows[0]["tokenizer"]) == (
        "62", "250", "builtin",
    )  # fmt: skip
    with open(out / "scores.csv", newline="") as file:
        assert {r["score"] for r in csv.DictReader(file)} == set(RULES)


def test_results_come_back_from_json(tmp_path):
    report.write(results(), tmp_path)
    assert report.read(tmp_path) == tables.in_order(results())
    with pytest.raises(report.ReportError, match="holds no summary.json"):
        report.read(tmp_path / "nothing")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(report.ReportError, match="not one of our summaries"):
        report.read(tmp_path)
    with pytest.raises(report.ReportError, match="no result"):
        report.write([], tmp_path)


def test_a_folder_of_an_earlier_version_is_answered_with_a_sentence(tmp_path, capsys):
    """A summary.json that lists its results under `cells`."""
    old = {
        "task": "qa1", "length": "1s", "samples": 20, "right": {"official": 20, "exact": 20},
        "majority": 0.25, "chance": 0.1667, "tokens": 62.0, "characters": 267.0,
        "tokenizer": "builtin", "counted": "builtin", "gpt2_tokens": 0.0, "decoding": "greedy",
        "reset": None, "perturb": "", "trained": True, "seconds": 1.0, "depths": [[0.5, True]],
        "accuracy": {"official": 1.0, "exact": 1.0},
    }  # fmt: skip
    tree = {"score": "official", "mean_accuracy": {"1s": 1.0}, "cells": [old]}
    (tmp_path / "summary.json").write_text(json.dumps(tree))
    with pytest.raises(report.ReportError, match="earlier version of rmt_jax: it holds 'cells'"):
        report.read(tmp_path)
    assert exit_code(comparison.main, [str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"python -m rmt_jax.evaluate --workdir RUN --out {tmp_path}" in message
    assert "Traceback" not in message and not (tmp_path / "out").exists()


def test_tables_name_what_was_counted():
    text = report.table(results())
    assert "qa1   1s" in text and "16s*" in text and "mean at 1s: 91.7" in text
    assert "majority 25.0, random 16.7, memory reset 25.0" in text
    for table in (text, report.markdown(results(), "official")):
        assert "score: official" in table and "greedy decoding" in table
        assert "tokens of builtin" in table and "250" in table
        assert "20 questions per task and length" in table
    forced = [EvalResult("qa1", "1s", 4, {"exact": 4}, decoding="teacher-forced")]
    assert "teacher-forced decoding" in report.table(forced)
    assert report.main_rule(forced) == report.main_rule(forced, "official") == "exact"
    assert report.main_rule(results(), "lm_eval") == "lm_eval"


def test_learning_curves_want_a_training_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "validation": {"qa1": {"1s": 1.0}}}\n')
    with pytest.raises(ValueError, match="no training step yet"):
        curves.learning_curves(file, tmp_path / "curves.png")
    train, checks = curves.read_metrics(metrics(tmp_path))
    assert [r["step"] for r in train] == [0, 10, 20, 30, 40, 50] and len(checks) == 1
    assert checks[0]["accuracy/qa1"] == pytest.approx(0.8)


def test_depth_bins():
    points = [(0.0, True), (0.19, False), (1.0, True)]
    assert [(round(b[0], 2), b[1]) for b in curves.depth_bins(points, 5)] == [(0.1, 0.5), (0.9, 1)]


def test_runs_side_by_side(tmp_path, capsys):
    for k in range(2):
        report.write(results(less=k), tmp_path / str(k))
    runs = [str(tmp_path / "0"), str(tmp_path / "1")]
    out = ["--out", str(tmp_path / "out")]
    assert exit_code(comparison.main, [*runs, "--groups", "rmt,rmt", "--references", *out]) == 0
    text = capsys.readouterr().out
    assert "| rmt | 2 | qa1 | 92.5 ± 3.5 |" in text
    assert "| majority answer | | mean | 25.0 |" in text
    assert "| random answer | | mean | 16.7 |" in text
    assert (tmp_path / "out" / "comparison.png").exists()
    changed = [dataclasses.replace(result, perturb="typos") for result in results()]
    report.write(changed, tmp_path / "typos")
    assert exit_code(comparison.main, [str(tmp_path / "typos"), *out]) == 2
    assert "answers to perturbed texts only" in capsys.readouterr().err
    assert exit_code(comparison.main, [*runs, "--names", "a", *out]) == 2
    assert "1 names for 2 runs" in capsys.readouterr().err


def test_published_figures_name_metric_and_source():
    rows = report.reference()
    assert all(r["metric"] and r["source"] for r in rows)
    ours = {(r["task"], r["length"]): r["accuracy"] for r in rows if "multi-task" in r["model"]}
    assert ours["qa2", "32k"] == 51.8 and ours["mean", "128k"] == 34.1


def test_page_holds_its_pictures(tmp_path):
    report.write(results(), tmp_path / "lengths")
    sections = [page.Section("Lengths", "Trained lengths & longer.", results())]
    sections.append(page.Section("Perturbed typos", "x", results(2, "typos")))
    sections.append(page.Section("Other", "Left out: why.", []))
    page.write(tmp_path, sections, "Two layers & a memory.")
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and "Trained lengths &amp; longer." in text
    assert "<h1>Evaluation report</h1><p>Two layers &amp; a memory.</p>" in text
    assert "<h2>Other</h2><p>Left out: why.</p>" in text
    summary = (tmp_path / "report.md").read_text().split("## Lengths")[0]
    assert "\n\nTwo layers & a memory.\n\n" in summary
    assert "| unchanged | 91.7 | 86.7 | 41.7 | official |" in summary
    assert "| typos | 81.7 | 76.7 | 31.7 | official |" in summary
    assert "<th>16s</th>" in text and "<b>mean</b>" in text
    assert "lengths/heatmap.png" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("token_rows", [0, 3])
def test_a_trace_is_drawn_with_what_its_cell_shows(tmp_path, monkeypatch, token_rows):
    segments, size = 4, 60
    rng = np.random.default_rng(0)
    trace = SimpleNamespace(
        change=rng.random((segments, 2)),
        state_row_label="memory token",
        token_values=rng.random((segments, token_rows, size)),
        row_label="write token",
        value_label="attention",
        tokens=rng.integers(0, 9, (segments, size)),
        mask=np.ones((segments, size), bool),
    )
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path, pdf: drawn.append(figure) or [path])
    paths = inspection.draw_trace(
        trace, tmp_path / "qa1.png", title="QA1", facts=[(0, 6), (130, 136)], supporting=[1],
        decode=lambda token: f" w{token}",
    )  # fmt: skip
    assert paths == [tmp_path / "qa1.png"]
    panels = [axes for axes in drawn[0].axes if axes.get_label() != "<colorbar>"]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0] == "change of memory at each segment"
    assert panels[0].get_ylabel() == "memory token"
    if token_rows:
        assert titles[1] == "attention per token (mean over write tokens), %"
        assert titles[2] == "segment 2, where the last supporting fact stands"
        labels = panels[2].get_xticklabels()
        # Segment 2 starts at place 120; the panel, up to twelve tokens before the fact.
        assert [x.get_text() for x in labels] == [f"w{t}" for t in trace.tokens[2, :48]]
        bold = [k for k, x in enumerate(labels) if x.get_fontweight() == "bold"]
        assert bold == list(range(10, 16))
    else:
        assert len(panels) == 1


def test_axis_numbers():
    assert [figures.short_number(n) for n in (62, 999.9, 1_000, 1_234_567)] == [
        "62",
        "1k",
        "1k",
        "1.23M",
    ]


def recall_run(cell, memory, rates):
    return [
        EvalResult(
            "recall", f"{n}s", 100, {"exact": 100 * rate}, chance=1 / 16, tokens=32.0 * n,
            facts=8.0 * n, cell=cell, memory=memory, tokenizer="builtin",
        )
        for n, rate in zip((1, 2, 4), rates, strict=True)
    ]  # fmt: skip


def test_capacity_of_a_memory(tmp_path, capsys):
    runs = {
        "a": recall_run("delta", 4096, (1.0, 1.0, 0.75)),
        "b": recall_run("delta", 4096, (1.0, 1.0, 0.5)),
        "c": recall_run("rmt", 512, (1.0, 0.5, 1 / 16)),
    }
    for name, found in runs.items():
        report.write(found, tmp_path / name)
    # Of 32 facts at 75 %: 32 (0.75 - 1/16) / (1 - 1/16).
    assert capacity.facts_kept(runs["a"][2], "exact") == pytest.approx(32 * 11 / 15)
    assert capacity.capacity(runs["b"], "exact") == pytest.approx(16)
    assert capacity.capacity(runs["c"], "exact") == 8
    folders = [str(tmp_path / name) for name in runs]
    words = [*folders, "--capacity", "--out", str(tmp_path / "out")]
    assert exit_code(comparison.main, words) == 0
    text = (tmp_path / "out" / "capacity.md").read_text()
    assert "| recall: facts in a text | runs | 8 | 16 | 32 | most kept |" in text
    assert "| delta, 4,096 numbers | 2 | 100.0 | 100.0 | 62.5 | 20 ± 5 |" in text
    assert "| rmt, 512 numbers | 1 | 100.0 | 50.0 | 6.2 | 8 |" in text
    assert "| random answer | | 6.2 | 6.2 | 6.2 | |" in text
    assert text in capsys.readouterr().out
    for kind in ("png", "pdf"):
        assert (tmp_path / "out" / f"capacity.{kind}").stat().st_size > 5000
    named = [*words, "--groups", "big,big,small"]
    assert exit_code(comparison.main, named) == 0
    assert "| small | 1 |" in (tmp_path / "out" / "capacity.md").read_text()


def test_capacity_needs_facts(tmp_path, capsys):
    report.write(results(), tmp_path)
    words = [str(tmp_path), "--capacity", "--out", str(tmp_path / "out")]
    assert exit_code(comparison.main, words) == 2
    assert "None of these results says how many facts" in capsys.readouterr().err
