"""The page 'Train on your own data', line by line; and all that works for bAbI, for own tasks."""

import csv
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import exit_code

from rmt_jax import api, convert, evaluate, scores, train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "own_data.md").read_text(encoding="utf-8")
TINY = [
    "--config.init=",
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.d_mem=8",
    "--config.stages.0.steps=2",
    "--config.stages.0.batch=2",
    "--config.stages.0.segments=1",
    "--config.evaluation.lengths=all",
    "--config.evaluation.samples=2",
    "--config.evaluation.batch=2",
]


def blocks(language: str = "") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def run_page(folder: Path, monkeypatch, more: list[str]) -> None:
    """Every command of the page in order, then its Python; `more` goes to the training."""
    monkeypatch.chdir(folder)
    lines = [line for block in blocks() for line in block.splitlines()]
    for line in lines:
        if line.startswith("python -m rmt_jax."):
            name, *words = shlex.split(line)[2:]
            module = importlib.import_module(name)
            added = more if name == "rmt_jax.train" else []
            assert exit_code(module.main, [*words, *added]) == 0, line
        elif line.startswith("echo "):
            subprocess.run(["sh", "-c", line], check=True)
    for block in blocks("python"):
        exec(compile(block, "own_data.md", "exec"), {})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "configs", folder / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMT_JAX_CACHE", str(folder / "cache"))
        run_page(folder, patch, TINY)
        yield folder


def test_every_line_of_the_page_runs(place):
    assert (place / "exported" / "config.json").is_file()
    with open(place / "all_rows" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # Each of the 200 rows is asked once, at its own length; the main score is that of labels.
    assert sum(int(row["samples"]) for row in rows) <= 6 and {r["score"] for r in rows} == {"label"}
    kept = json.loads((place / "runs" / "tickets" / "config.json").read_text())
    assert kept["data"]["questions"]["tickets"]["answer_tokens"] > 0


def test_the_run_can_be_asked_where_its_rows_are_not(place, monkeypatch, tmp_path):
    shutil.copytree(place / "runs" / "tickets", tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace(str(place), "/nowhere"))
    moved, here = api.load(tmp_path / "run"), api.load(place / "runs" / "tickets")
    asked = ("Hello, the radio is broken.", "Which team?")
    assert moved.answer(*asked) == here.answer(*asked)
    assert exit_code(evaluate.main, ["--workdir", str(tmp_path / "run")]) == 2


def test_the_test_rows_are_asked_in_file_and_report(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RMT_JAX_CACHE", str(place / "cache"))
    words = ["--workdir", "runs/tickets", "--split", "test", "--lengths", "all", "--samples", "99"]
    perturbed = ["--out", "asked", "--perturb", "wrong_description"]
    assert exit_code(evaluate.main, [*words, *perturbed]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tickets\b.* all\b", said) and "wrong_description" in said
    answers = (place / "asked" / "answers" / "tickets_all.jsonl").read_text().splitlines()[1:]
    assert len(answers) == 18  # all that there are, each once
    lines = (place / "configs" / "tickets.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    targets = [json.loads(line)["target"] for line in answers]
    assert set(targets) <= {row["team"] for row in rows}
    assert (
        exit_code(evaluate.main, [*words, "--suite", "paper", "--out", "suite", "--batch", "4"])
        == 0
    )
    assert "tickets" in (place / "suite" / "report.html").read_text()


def test_what_cannot_be_evaluated_is_a_sentence(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RMT_JAX_CACHE", str(place / "cache"))

    def said(*words: str) -> str:
        assert exit_code(evaluate.main, ["--workdir", "runs/tickets", *words]) == 2
        return capsys.readouterr().err

    assert "There are no texts of these lengths (tickets at 64s)" in said("--lengths", "64s")
    assert "There is no file none.jsonl" in said("--data", "none.jsonl")
    assert "Write --data TASK=none.jsonl" in said("--data", "other=none.jsonl")
    assert "has no texts for the perturbation 'paraphrase'" in said("--perturb", "paraphrase")
    assert "'tickets' has documents" in said("--perturb", "typos")


def test_an_exported_one_answers_alike(place, monkeypatch):
    text = "Hello, my parcel has not arrived. " * 30
    first, second = (api.load(place / name) for name in ("runs/tickets", "exported"))
    assert first.answer(text, "Which team?") == second.answer(text, "Which team?")
    assert convert.__doc__ and scores.NAMES


def test_a_continued_run_takes_the_same_rows(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("RMT_JAX_CACHE", str(place / "cache"))
    words = ["--config", "configs/tickets.py", "--workdir", "runs/tickets", *TINY]
    assert exit_code(train.main, words) == 0
    longer = [*words, "--config.data.questions.tickets.answer_tokens=9"]
    assert exit_code(train.main, longer) == 2
    assert "answer_tokens was" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_as_it_stands_learns(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    run_page(tmp_path, monkeypatch, [])
    results = tmp_path / "runs" / "tickets" / "evaluation"
    summary = json.loads((results / "summary.json").read_text())
    (result,) = summary["results"]
    assert result["samples"] == 18 and result["accuracy"]["label"] >= 0.8 > 2 * result["majority"]
