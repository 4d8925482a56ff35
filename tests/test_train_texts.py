"""Training on texts, all the way: alone and beside questions, as a user runs it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[1]
CONFIG = """
from rmt_jax.config import (
    Checkpoint, Config, Data, Evaluation, Model, Optimizer, Prompt, Stage, Texts
)


def get_config(preset="alone"):
    names = ("words",) if preset == "alone" else ("qa1", "words")
    return Config(
        model=Model(cell="rmt", layers=1, width=16, heads=2, positions="alibi", segment_tokens=32,
                    memory_tokens=2, scan_layers=True),
        prompt=Prompt(tokens=12),
        data=Data(tasks=names, texts={"words": Texts(train="builtin")}),
        optimizer=Optimizer(weight_decay=0.0),
        stages=(Stage(segments=2, steps=6, batch=8, learning_rate=1e-2, question_rates=(0.5,)),),
        evaluation=Evaluation(lengths=("2s",), samples=4, batch=4),
        checkpoint=Checkpoint(every=3),
        log_every=2,
    )
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"PYTHONWARNINGS": "default", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *args], capture_output=True, text=True, cwd=folder, env=environment
    )


@pytest.fixture(scope="module", params=[pytest.param("alone", marks=pytest.mark.slow), "beside"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "texts.py").write_text(CONFIG)
    config = f"texts.py:{request.param}"
    done = run(folder, "rmt_jax.train", "--config", config, "--workdir", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    return request.param, folder, done


def test_the_log_and_the_tables(trained):
    kind, folder, done = trained
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [x for x in lines if "loss" in x]
    assert [x["step"] for x in logged] == [2, 3, 4, 6]
    assert all(set(x["nats_per_token"]) == {"words"} for x in logged)
    assert logged[-1]["nats_per_token"]["words"] < logged[0]["nats_per_token"]["words"] < 9
    (checked,) = [x["validation_nats"] for x in lines if "validation" in x]
    assert set(checked["words"]) == {"1s", "2s"}
    if kind == "alone":
        assert all(x["loss"] == x["nats_per_token"]["words"] for x in logged)
        assert "majority" not in done.stdout and "rmt_jax.ask" not in done.stdout
    else:
        assert any(x["accuracy"].keys() == {"qa1"} for x in logged)
        assert "majority" in done.stdout and "rmt_jax.ask" in done.stdout
        assert (folder / "run" / "results" / "summary.csv").is_file()
    assert "validation at 1s/2s" in done.stderr and "(nats per token)" in done.stderr
    assert "bits/byte" in done.stdout and "--perplexity --data words --split test" in done.stdout
    table = (folder / "run" / "results" / "perplexity.csv").read_text()
    total = next(csv.DictReader(table.splitlines()))
    assert total["texts"] == "4" and int(total["tokens"]) <= 4 * 64
    for name in ("curves.png", "perplexity.png"):
        assert (folder / "run" / "results" / name).read_bytes()[:4] == b"\x89PNG"


def test_what_was_trained_is_measured_and_goes_on(trained):
    kind, folder, _ = trained
    again = run(folder, "rmt_jax.train", "--config", f"texts.py:{kind}", "--workdir", "run")
    assert again.returncode == 0 and "continuing from step 6" in again.stderr, again.stderr[-2000:]
    words = ["--workdir", "run", "--perplexity", "--split", "test", "--samples", "1"]
    done = run(folder, "rmt_jax.evaluate", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 text of words, test split" in done.stdout
    if kind == "alone":
        done = run(folder, "rmt_jax.evaluate", "--workdir", "run")
        assert done.returncode == 2 and "measure it with --perplexity" in done.stderr


ROWS = CONFIG.replace("Stage, Texts", "Questions, Stage").replace(
    'Data(tasks=names, texts={"words": Texts(train="builtin")})',
    'Data(tasks=("rows",), questions={"rows": Questions(train="rows.jsonl")}, background="none")',
)


def test_rows_of_two_segments_each_train_though_none_has_one(tmp_path):
    text = "The keys are at the gate and nobody was hurt in the hall. " * 3  # over 32 tokens
    rows = [{"context": f"{n}. {text}", "question": "Who?", "answer": "x"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.py").write_text(ROWS)
    done = run(tmp_path, "rmt_jax.train", "--config", "texts.py", "--workdir", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (checked,) = [x["validation"] for x in lines if "validation" in x]
    assert set(checked["rows"]) == {"2s"}, checked
