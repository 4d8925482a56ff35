"""lm-evaluation-harness runs its kind of BABILong task on our checkpoint (extra `lmeval`)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_run

from rmt_jax import api, lmeval
from rmt_jax.config import Data
from rmt_jax.evaluation import likelihood

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


PAIRS = (
    ("Mary went to the", " garden."),
    ("Mary went to the ", "garden."),  # the space belongs to the continuation
    ("", "It rained."),
    ("The sun shone on the old house. " * 30, "Mary went to the garden, and so on."),
    ("A", "b c d e"),
)


def plain(folder, cell="rmt", align="left", **prompt):
    """A model that was trained on no task."""
    config = tiny_run.config(cell, **(prompt or {"source": "none"}))
    data = Data(tasks=config.data.tasks if prompt else (), align=align)
    return api.load(tiny_run.save(folder, config.replace(data=data)))


def ranking(pairs):
    return [SimpleNamespace(doc={}, args=pair, task_name="other") for pair in pairs]


@pytest.mark.torch
def test_given_texts_are_as_likely_as_torch_says(tmp_path):
    """Context and continuation, whole texts, and what greedy decoding says, of one segment."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
    from test_llama_torch import build

    words = tiny_run.words()
    module = build("llama", vocab_size=words.vocab_size, eos_token_id=words.end)
    module.save_pretrained(tmp_path)
    words.save(tmp_path)
    model = api.load(tmp_path)

    def scores(ids):
        with torch.no_grad():
            logits = module(torch.tensor(ids)[None]).logits[0].double()
        return torch.log_softmax(logits, dim=-1)[:-1].numpy()

    pairs = PAIRS[:3] + PAIRS[4:]
    best = words.decode(scores([*words.encode("Mary went"), 0]).argmax(-1)[-1:])
    pairs += (("Mary went", best),)
    found = lmeval.rank(model, ranking(pairs), batch=2)
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        before = words.encode(context.rstrip()) or [words.end]
        own = words.encode(context[len(context.rstrip()) :] + continuation)
        rows = scores([*before, *own])[-len(own) :]
        assert logprob == pytest.approx(
            sum(row[i] for row, i in zip(rows, own, strict=True)), abs=2e-4
        )
        assert greedy == all(row.argmax() == i for row, i in zip(rows, own, strict=True))
    assert found[-1][1]
    texts = ["It rained all day.", "Mary went to the garden."]
    rolled = lmeval.roll(model, ranking([(text,) for text in texts]), batch=4)
    for text, value in zip(texts, rolled, strict=True):
        ids = [words.end, *words.encode(text)]
        wanted = sum(row[i] for row, i in zip(scores(ids), ids[1:], strict=True))
        assert value == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("cell", ("rmt", pytest.param("delta", marks=pytest.mark.slow)))
def test_long_contexts_are_read_through_memory(tmp_path, cell, monkeypatch):
    """As logits of the whole text say, in whatever blocks, beside whatever other texts."""
    model = plain(tmp_path, cell)
    found = lmeval.rank(model, ranking(PAIRS), batch=3)
    monkeypatch.setattr(likelihood, "BLOCK", 2)
    likelihood.programs.cache_clear()
    alone = [lmeval.rank(model, [request], batch=1)[0] for request in ranking(PAIRS)]
    words = model.tokenizer
    context, continuation = PAIRS[3]
    before, whole = (words.encode(t) for t in (context.rstrip(), context + continuation))
    assert len(whole) > 4 * model.segment_tokens
    logits, _ = model.forward(np.array([whole]))
    scores = np.asarray(jax.nn.log_softmax(logits[0]))
    wanted = sum(scores[i - 1, whole[i]] for i in range(len(before), len(whole)))
    for logprob, greedy in (found[3], alone[3]):
        assert logprob == pytest.approx(wanted, abs=1e-3) and not greedy
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    text = context + continuation
    (value,) = lmeval.roll(model, ranking([(text,)]), batch=1)
    ids = np.array([[words.end, *words.encode(text)]])
    rows = np.asarray(jax.nn.log_softmax(model.forward(ids)[0][0]))
    wanted = sum(rows[i - 1, ids[0, i]] for i in range(1, ids.shape[1]))
    assert value == pytest.approx(wanted, abs=1e-2)


def test_segments_end_and_prompts_stand_as_in_training(tmp_path):
    """Texts are cut at sentences where training cut them so, and read with the task's prompt."""
    model = plain(tmp_path, align="sentence", source="description")
    words, text = model.tokenizer, "Mary went home. " * 12
    ids = np.array(words.encode(text), np.int32)
    (request,) = ranking([(text,)])
    request.task_name = "babilong_qa1"
    asked = lmeval._asked(model, request, False)
    (score,) = likelihood.score_texts(model, [ids], batch=1, prompts=[asked])
    bounds = likelihood._bounds(model, ids)
    assert all(words.stops[ids[end - 1]] for end in bounds[1:-1]) and len(bounds) > 2
    tokens = np.zeros((1, len(bounds) - 1, model.segment_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for k, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        tokens[0, k, : end - begin], mask[0, k, : end - begin] = ids[begin:end], True
    from rmt_jax.evaluation import answering

    logits, _ = model.forward(
        tokens.reshape(1, -1), mask.reshape(1, -1), answering.prompts(model, [asked])
    )
    real = np.asarray(jax.nn.log_softmax(logits[0]))[mask.reshape(-1)]
    wanted = [real[i - 1, ids[i]] for i in range(1, len(ids))]
    np.testing.assert_allclose(score.logprob[1:], wanted, atol=1e-4)
    assert score.logprob[0] == 0 and score.likeliest[0]


def test_a_model_of_no_task_continues_the_prompt(tmp_path):
    model = plain(tmp_path)
    long = "The sun shone on the old house. " * 20 + "Mary"
    requests = [
        SimpleNamespace(doc={}, args=(text, {"until": [], "max_gen_toks": 6}))
        for text in ("Mary went", long, "")
    ]
    found = lmeval.answers(model, requests, batch=2, whole=False)
    ids = np.array([model.tokenizer.encode("Mary went")])
    made = model.generate(ids, 6)[0]
    assert found[0] == model.tokenizer.decode(made[made != model.end]).strip()
    assert len(found) == 3


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


CHOICE = """
task: where_choice
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}Mary is in the"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: mary_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: rolling.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
- {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""


@pytest.mark.slow  # a minute: the harness imports much
def test_tasks_of_the_users_own_by_the_command(tmp_path):
    """A ranking and a perplexity of local files: the scores are those of our own functions, and
    nothing warns."""
    pytest.importorskip("lm_eval", reason="pip install -e '.[lmeval]'")
    places = ["garden", "office", "kitchen"]
    long = "The sun shone on the old house. " * 12
    rows = [
        {"text": f"Mary went to the {place}. {long}", "choices": places, "label": k}
        for k, place in enumerate(places)
    ]
    for name, text in (("choice", CHOICE), ("rolling", ROLLING)):
        (tmp_path / f"{name}.yaml").write_text(text)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = plain(tmp_path / "run")
    command = [sys.executable, "-m", "rmt_jax", "lmeval", "run", "--model", "rmt_jax"]
    command += ["--model_args", "workdir=run", "--tasks", "where_choice,mary_rolling"]
    command += ["--include_path", ".", "--batch_size", "2", "--output_path", "out"]
    root = str(Path(lmeval.__file__).parents[1])
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    env["PYTHONPATH"] = os.pathsep.join([root, env.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    told = done.stdout + done.stderr
    assert not re.search(r"warn|deprecat|traceback|error", told, re.I), told[-4000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    pairs = [(f"{row['text']}Mary is in the", f" {place}") for row in rows for place in places]
    ranked = lmeval.rank(model, ranking(pairs), batch=2)
    scores = np.array([logprob for logprob, _ in ranked]).reshape(3, 3)
    right = (scores.argmax(axis=1) == np.arange(3)).mean()
    assert found["where_choice"]["acc,none"] == pytest.approx(right)
    rolled = lmeval.roll(model, ranking([(row["text"],) for row in rows]), batch=2)
    bits = -sum(rolled) / sum(len(row["text"]) for row in rows) / np.log(2)
    assert found["mary_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
