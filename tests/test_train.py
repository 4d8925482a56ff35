"""The README's first command, with the smoke preset: the whole way, as a user runs it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rmt_jax import scores

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "rmt_jax.train", "--config", "configs/multitask.py:smoke"]
TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")


def run(*args: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    return workdir, run("--workdir", str(workdir))


def test_it_ends_with_a_table_and_the_next_commands(smoke):
    workdir, done = smoke
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    for text in ("majority", "mean at 1s", "mean at 4s", "rmt_jax.ask", str(workdir)):
        assert text in done.stdout


def test_the_summary_has_its_columns(smoke):
    table = (smoke[0] / "results" / "summary.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert list(rows[0])[:6] == ["task", "length", "score", "accuracy", "samples", "majority"]
    assert {(r["task"], r["length"]) for r in rows} == {
        (task, length) for task in TASKS for length in ("1s", "2s", "4s")
    }
    for row in rows:  # the share of the logged answers that are right
        (log,) = (smoke[0] / "results").rglob(f"{row['task']}_{row['length']}.jsonl")
        answers = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
        right = [
            scores.official(row["task"], a["question"], a["target"], a["output"]) for a in answers
        ]
        assert len(right) == int(row["samples"]) == 10
        assert float(row["accuracy"]) == pytest.approx(sum(right) / 10)


def test_pictures_weights_and_config_are_there(smoke):
    workdir = smoke[0]
    for name in ("heatmap.png", "lengths.png", "curves.png"):
        assert (workdir / "results" / name).read_bytes()[:4] == b"\x89PNG"
    assert (workdir / "weights.safetensors").stat().st_size > 100_000
    assert json.loads((workdir / "config.json").read_text())["model"]["cell"] == "delta"


def test_the_log_has_speeds_and_the_wait_for_data(smoke):
    lines = [json.loads(x) for x in (smoke[0] / "metrics.jsonl").read_text().splitlines()]
    logged = [x for x in lines if "loss" in x]
    assert logged[-1]["step"] == 30 and logged[0]["compile_seconds"] > 0
    assert all(x["compile_seconds"] == 0 for x in logged[1:])  # nothing while it trains
    assert "compiling 0 of " in smoke[1].stderr
    assert all(x["tokens_per_second"] > 0 and x["data_wait_fraction"] < 1 for x in logged)
    assert logged[-1]["loss"] < logged[0]["loss"]
    validated = [x["validation"] for x in lines if "validation" in x]
    assert set(validated[-1]) == set(TASKS) and set(validated[-1]["qa1"]) == {"1s", "2s"}


def test_a_second_start_continues_and_another_config_is_refused(smoke):
    workdir, _ = smoke
    again = run("--workdir", str(workdir))
    assert again.returncode == 0 and "continuing from step 30" in again.stderr
    other = run("--workdir", str(workdir), "--config.model.width=64")
    assert other.returncode == 2
    assert "model.width was 32 and is 64" in other.stderr and "--workdir" in other.stderr
