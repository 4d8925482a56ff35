"""lm-evaluation-harness runs its kind of BABILong task on our checkpoint (extra `lmeval`)."""

import json
from types import SimpleNamespace

import pytest
import tiny_run

from rmt_jax import lmeval
from rmt_jax.config import Data

# Where the harness looks for the hub's data set first: a folder of its name.
CARD = """---
configs:
- config_name: 0k
  data_files: [{split: qa1, path: qa1.jsonl}]
---
"""
ROWS = [
    {"input": f"Mary went to the {p}. " * 20, "question": "Where is Mary? ", "target": p}
    for p in ("garden", "office", "kitchen")
]


def request(row, prompt="You are told.\nMary went home.\nWhere is Mary?", **named):
    return SimpleNamespace(doc=row, args=(prompt, {"until": [], "max_gen_toks": 16}), **named)


def test_a_request_is_taken_apart():
    assert lmeval.texts_of(request(ROWS[0]), False) == (ROWS[0]["input"], ROWS[0]["question"])
    assert lmeval.texts_of(request(ROWS[0]), True)[1] == "Where is Mary?"
    assert lmeval.texts_of(request({}), False) == (
        "You are told.\nMary went home.",
        "Where is Mary?",
    )
    assert (
        lmeval.task_of(request({}, task_name="babilong_qa7"), "Who?", Data(tasks=("qa1",))) == "qa7"
    )
    assert lmeval.task_of(request({}), "Who gave the milk?", Data(tasks=("qa1",))) == "qa5"
    assert lmeval.cut("garden\nWhere", ["\n"]) == "garden"


def test_answers_come_back_in_order(tmp_path):
    model = tiny_run.model(tmp_path)
    long = {"input": "It rained all day. " * 60, "question": "Where is Mary?", "target": "x"}
    requests = [request(row, task_name="babilong_qa1") for row in (long, *ROWS)]
    together = lmeval.answers(model, requests, batch=2, whole=False)
    assert together == [lmeval.answers(model, [r], batch=2, whole=False)[0] for r in requests]


@pytest.mark.slow  # two minutes: the harness imports much
# The harness and what it imports warn of their own affairs.
@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself(tmp_path, monkeypatch):
    """Its own BABILong task, two examples and score included, on local data."""
    harness = pytest.importorskip("lm_eval", reason="pip install -e '.[lmeval]'")
    datasets = pytest.importorskip("datasets", reason="pip install -e '.[lmeval]'")
    folder = tmp_path / "RMT-team" / "babilong-1k-samples"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = tiny_run.save(tmp_path / "run", tiny_run.config())
    ours = lmeval.register()(workdir=str(run), batch_size=2)
    requests = [request(row, task_name="babilong_qa1") for row in ROWS]
    answers = lmeval.answers(ours.model, requests, batch=2, whole=False)
    # The first example asks for what the model says, the others for what it never does.
    rows = [row | {"target": "xyzzy"} for row in ROWS]
    rows[0]["target"] = answers[0]
    (folder / "qa1.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = harness.simple_evaluate(model=ours, tasks=["babilong_qa1"], bootstrap_iters=0)
    assert found["results"]["babilong_qa1"]["acc,none"] == pytest.approx(1 / 3)
    assert [s["filtered_resps"][0] for s in found["samples"]["babilong_qa1"]] == answers
