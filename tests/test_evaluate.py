"""Long texts answered: the layout of training, whatever the batch; answers kept; clear errors."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import tiny_run
from commands import exit_code

from rmt_jax import api, report
from rmt_jax import evaluate as evaluate_command
from rmt_jax.data import segmentation
from rmt_jax.evaluation import answering, evaluate, inspection, runner, sources, suite, tracing
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.runtime.preemption import REQUEUE


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.save(tmp_path_factory.mktemp("run"), tiny_run.config())


@pytest.fixture(scope="module")
def model(run):
    return tiny_run.api.load(run)


def asked(counts, tail=5):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 4000, (len(counts), max(counts) + tail)).astype(np.int32)
    prompt = np.array([7, 8, 9], np.int32)
    return [
        EncodedQuestion(row[:n], row[-tail:], prompt) for row, n in zip(ids, counts, strict=True)
    ]


@pytest.mark.parametrize("align", ["left", "right", "sentence"])
def test_layout_is_that_of_training(align):
    size, tail, room, stops = 16, 5, 3, np.arange(3, 70, 7)
    for context in range(70):
        x = answering.layout(context, tail, room, size, align, stops)
        bounds = segmentation.segment_bounds(context, tail + room, size, align, stops)
        assert x.bounds.tolist() == bounds.tolist()
        tokens, mask = np.zeros((x.segments, size), int), np.zeros((x.segments, size), bool)
        answering.fill_segments(np.arange(context), x, 0, tokens, mask)
        assert tokens[mask].tolist() == list(range(context - x.remainder))
        assert mask.sum(axis=1).tolist() == np.diff(bounds)[:-1].tolist()
        half = np.zeros((2, size), int)  # the same in blocks
        for start in range(0, x.segments, 2):
            part = np.zeros((2, size), bool)
            answering.fill_segments(np.arange(context), x, start, half, part)
            assert (part[: x.segments - start] == mask[start : start + 2]).all()
    with pytest.raises(answering.AnsweringError, match=r"takes 15 \+ 3 tokens, but a segment"):
        answering.layout(9, 15, 3, size, align)


def test_answers_do_not_depend_on_the_batch(model):
    texts = asked([0, 3, 45, 48, 96, 130, 200])
    together, _ = answering.greedy_answers(model, texts, max_new_tokens=3, batch=4)
    alone = [answering.greedy_answers(model, [a], max_new_tokens=3, batch=1)[0][0] for a in texts]
    assert together == alone
    assert len(set(together)) > 1  # the texts are told apart


def test_blocks_of_segments_join(model, monkeypatch):
    texts = asked([400, 300])
    whole, _ = answering.greedy_answers(model, texts, max_new_tokens=3, batch=2)
    monkeypatch.setattr(answering, "BLOCK", 3)
    assert answering.greedy_answers(model, texts, max_new_tokens=3, batch=2)[0] == whole


def test_memory_reset_leaves_the_last_segment_alone(model):
    texts = asked([0, 40, 300])
    answers, control = answering.greedy_answers(model, texts, max_new_tokens=3, batch=3, reset=True)
    assert control[:2] == answers[:2]  # one segment: there is no memory to reset
    last = [dataclasses.replace(a, context=a.context[len(a.context) // 48 * 48 :]) for a in texts]
    assert control == answering.greedy_answers(model, last, max_new_tokens=3, batch=3)[0]


def test_teacher_forced_agrees_where_the_free_answer_is_forced(model):
    texts = asked([10, 130])
    free, _ = answering.greedy_answers(model, texts, max_new_tokens=3, batch=2)
    ids = [model.generate_from(*_tail(model, a), max_new_tokens=2)[0] for a in texts]
    forced, _ = answering.teacher_forced_answers(model, texts, ids, max_new_tokens=3, batch=2)
    assert forced == free  # forcing the model's own tokens changes nothing


def _tail(model, a):
    place = answering.segment_layouts(model, [a], [3])
    prompt = answering.prompts(model, [a])
    memory = answering.read_contexts(model, [a], place, prompt, model.initial_memory(1))
    return memory, *answering.last_segments(model, [a], place), prompt


@pytest.mark.parametrize("source", ["none", "question", "both", "learned"])
def test_every_prompt_source(tmp_path, source):
    model = tiny_run.model(tmp_path, source=source)
    found = evaluate(model, tasks=["qa5"], lengths=["2s"], samples=2, progress=False)
    assert found[0].samples == 2
    if source == "learned":
        with pytest.raises(sources.QuestionError, match="learned prompts for qa1, qa5"):
            evaluate(model, tasks=["qa2"], lengths=["2s"], samples=1, progress=False)


def test_results_say_what_was_measured(model, tmp_path):
    found = evaluate(model, out=tmp_path, progress=False)
    assert [(c.task, c.length) for c in found] == [
        ("qa1", "1s"), ("qa5", "1s"), ("qa1", "3s"), ("qa5", "3s"),
    ]  # fmt: skip
    one, long = found[0], found[2]
    assert one.samples == 5 and set(one.right) == {"official", "corrected", "exact", "lm_eval"}
    assert one.reset == one.right and long.reset is not None
    assert one.trained and not long.trained and one.tokenizer == "builtin"
    assert 40 < one.tokens <= 48 and 3 * one.characters == pytest.approx(long.characters, rel=0.2)
    assert len(one.depths) == 5
    folder = tmp_path / "predictions" / "rmt_jax" / "model"
    stem = "qa1_3s_instruction_yes_examples_no_post_prompt_no"
    with open(folder / f"{stem}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["", "target", "output", "question"] and len(rows) == 5
    ((_, commonest),) = Counter(row["target"] for row in rows).most_common(1)
    assert long.majority == commonest / 5
    assert {"prompt", "generate_kwargs"} <= set(json.loads((folder / f"{stem}.json").read_text()))


def test_finished_answers_are_kept(model, tmp_path, monkeypatch):
    what = {"tasks": ["qa1"], "lengths": ["1s"], "samples": 3, "progress": False}
    first = evaluate(model, out=tmp_path, **what)

    def never(*args, **named):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(answering, "greedy_answers", never)
        assert evaluate(model, out=tmp_path, **what) == first
        with pytest.raises(AssertionError):  # another question set is another evaluation
            evaluate(model, out=tmp_path, **(what | {"seed": 9}))


def test_a_folder_of_an_earlier_version_is_written_anew(model, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "qa1_1s.jsonl").write_text(
        '{"key": "0123456789abcdef"}\n{"control": 1}\n'
    )
    (tmp_path / "summary.json").write_text('{"cells": []}')
    found = evaluate(model, tasks=["qa1"], lengths=["1s"], samples=2, out=tmp_path, progress=False)
    report.write(found, tmp_path)
    assert report.read(tmp_path) == found and found[0].samples == 2


def test_the_page_says_what_was_evaluated(model):
    assert suite.describe_model(model) == (
        "Memory cell rmt, 1 layers of width 16, 2 memory tokens, segments of 48 tokens; trained on"
        " qa1, qa5 up to 2 segments (96 tokens); task prompt: description, seen at: every;"
        " tokenizer: builtin."
    )


def test_an_evaluation_goes_on_behind_its_last_answer(model, tmp_path, monkeypatch):
    what = {"tasks": ["qa1"], "lengths": ["1s"], "progress": False}
    file = tmp_path / "answers" / "qa1_1s.jsonl"
    whole = evaluate(model, out=tmp_path / "whole", samples=5, **what)
    asked = []

    def counting(model, some, **named):
        asked.append(len(some))
        return greedy_answers(model, some, **named)

    greedy_answers = answering.greedy_answers
    monkeypatch.setattr(answering, "greedy_answers", counting)
    evaluate(model, out=tmp_path, samples=3, **what)
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 3 and asked == [3]
    file.write_text("".join(lines[:3]) + lines[3][:40])  # a kill in the middle of a line
    assert same(evaluate(model, out=tmp_path, samples=5, **what), whole)
    assert asked == [3, 3] and len(file.read_text().splitlines()) == 1 + 5
    with open(next((tmp_path / "predictions").rglob("*.csv")), newline="") as table:
        assert len(list(csv.DictReader(table))) == 5
    file.write_text(file.read_text()[:20])  # a kill in the middle of the first line
    assert same(evaluate(model, out=tmp_path, samples=5, **what), whole)
    assert asked == [3, 3, 4, 1]  # of at most 4
    # Fewer questions are the first of them; answers without the control are another evaluation's.
    few = evaluate(model, out=tmp_path, samples=3, **what)
    assert few[0].samples == 3 and asked == [3, 3, 4, 1]
    assert evaluate(model, out=tmp_path, samples=2, reset=False, **what)[0].reset is None
    assert asked == [3, 3, 4, 1, 2] and len(file.read_text().splitlines()) == 1 + 2


def same(found, wanted):
    """But for the time that it took."""
    return [dataclasses.replace(c, seconds=0.0) for c in found] == [
        dataclasses.replace(c, seconds=0.0) for c in wanted
    ]


def test_perturbed_worlds_are_scored_by_rules_that_know_their_words(model):
    found = evaluate(
        model, tasks=["qa1"], lengths=["1s"], samples=3, perturb=["new_places"], progress=False
    )
    assert set(found[0].right) == {"exact", "lm_eval"} and not found[0].trained
    with pytest.raises(sources.QuestionError, match="no perturbation 'rain'"):
        evaluate(model, perturb=["rain"], progress=False)


def test_batches_shrink_with_length():
    assert runner.batch_size(50, 100, 30_000) == 50
    assert runner.batch_size(50, 3, 30_000) == 3
    assert runner.batch_size(50, 100, 1_000_000) == 4
    assert runner.batch_size(50, 100, 10_000_000) == 1


def test_an_accelerator_reads_more_texts_side_by_side(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert runner.batch_size(100, 100, 1_000_000) == 100
    assert runner.batch_size(100, 100, 10_000_000) == 8


@pytest.mark.parametrize(
    ("name", "length", "least"), (("multitask", "16s", 34), ("multitask-rmt", "4s", 30))
)
def test_the_shipped_checkpoint_remembers(name, length, least):
    """Stories scattered over sixteen segments of 64 tokens or four of 512, twelve questions per
    task."""
    model = api.load(name)
    source = sources.Generated(model)
    asked = [q for task in ("qa1", "qa2", "qa4") for q in source.ask(task, length, range(12))]
    room = max(source.room(task) for task in ("qa1", "qa2", "qa4"))
    said = answering.greedy_answers(
        model, [q.encoded for q in asked], max_new_tokens=room, batch=12
    )[0]
    right = sum(answer == q.target for answer, q in zip(said, asked, strict=True))
    assert right >= least, [(q.question, q.target, a) for a, q in zip(said, asked, strict=True)]


@pytest.mark.parametrize(
    ("how", "least"), [("new_people", 36), pytest.param("new_places", 36, marks=pytest.mark.slow)]
)
def test_the_shipped_checkpoint_that_copies_names(how, least):
    """Names held out of training, one segment, twenty questions of QA1 and of QA4 each."""
    model = api.load("multitask-wide")
    source = sources.Generated(model)
    asked = [q for task in ("qa1", "qa4") for q in source.ask(task, "1s", range(20), how)]
    room = max(source.room(task, how) for task in ("qa1", "qa4"))
    said = answering.greedy_answers(
        model, [q.encoded for q in asked], max_new_tokens=room, batch=20
    )[0]
    right = sum(answer == q.target for answer, q in zip(said, asked, strict=True))
    assert right >= least, [(q.question, q.target, a) for a, q in zip(said, asked, strict=True)]


def test_inspection_sees_every_segment(model, tmp_path):
    source = sources.Generated(model)
    q = source.ask("qa1", "3s", range(1))[0]
    trace = tracing.trace(model, q.encoded)
    assert trace.change.shape == (3, 2) and trace.token_values.shape == (3, 2, 48)
    # What write memory pays to the text is a part of its attention, padding gets none.
    assert (trace.token_values.sum(axis=2) <= 1 + 1e-5).all() and trace.token_values.max() > 0
    assert (
        trace.token_values[~np.broadcast_to(trace.mask[:, None], trace.token_values.shape)] == 0
    ).all()
    paths = inspection.inspect_memory(model, source, ["qa1"], ["3s"], tmp_path)
    assert {p.suffix for p in paths} == {".png", ".pdf", ".json"}


def test_command_line(run, tmp_path, capsys):
    words = ["--workdir", str(run), "--tasks", "qa1", "--lengths", "1s", "--samples", "2"]
    assert (
        exit_code(evaluate_command.main, [*words, "--out", str(tmp_path), "--name", "us/ours"]) == 0
    )
    text = capsys.readouterr().out
    assert "qa1   1s" in text and "score: official" in text
    assert report.read(tmp_path)[0].samples == 2
    assert (tmp_path / "predictions" / "us" / "ours").is_dir()
    forced = [*words, "--out", str(tmp_path), "--teacher_forced", "--no-reset"]
    assert exit_code(evaluate_command.main, forced) == 0
    assert "teacher-forced decoding" in capsys.readouterr().out


def test_fewer_questions_than_asked_for_are_said(run, tmp_path, capfd):
    rows = [{"input": "Mary went.", "question": "Where is Mary?", "target": "office"}] * 3
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "1k.json").write_text(json.dumps(rows))
    words = ["--workdir", str(run), "--tasks", "qa1", "--lengths", "1k", "--data", str(tmp_path)]
    words += ["--out", str(tmp_path / "out"), "--samples"]
    assert exit_code(evaluate_command.main, [*words, "5"]) == 0
    assert "fewer questions than the 5 asked for: qa1 1k 3" in capfd.readouterr().err
    assert exit_code(evaluate_command.main, [*words, "3"]) == 0
    assert "fewer" not in capfd.readouterr().err


def test_sigterm_keeps_answers_and_asks_to_be_started_again(run, tmp_path):
    command = [sys.executable, "-m", "rmt_jax.evaluate", "--workdir", str(run), "--batch", "20"]
    command += ["--tasks", "qa1", "--lengths", "1s,400s", "--samples", "200"]
    command += ["--out", str(tmp_path), "--no_reset"]
    first = tmp_path / "answers" / "qa1_1s.jsonl"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not (first.exists() and len(first.read_text().splitlines()) == 201):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == REQUEUE and "Traceback" not in stderr, stderr
    assert "told to stop; answers are kept: the same command continues" in stderr
    assert list((tmp_path / "answers").iterdir()) == [first]


@pytest.mark.parametrize(
    "words,message",
    [
        (["--tasks", "qa99"], "'qa99', but there is no such task"),
        (["--lengths", "4x"], "Unknown length '4x'"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "official"], "name their folder with --babi"),
        (["--perturb", "other_background"], "other_background"),
        (["--samples", "-1"], r"samples (-1)"),
        (["--seed", "-1"], "--seed: a seed is a whole number between 0 and 2147483647, but got"),
        (["--seed", "x"], "but got 'x'"),
        (["--out", "/dev/null/x"], "Not a directory: '/dev/null/x"),
        (["--data", "nowhere/at/all"], "there is no folder nowhere/at/all"),
    ],
)
def test_command_line_errors_are_sentences(run, tmp_path, capsys, words, message):
    assert (
        exit_code(evaluate_command.main, ["--workdir", str(run), "--out", str(tmp_path), *words])
        == 2
    )
    assert message in capsys.readouterr().err


def test_no_checkpoint(tmp_path, capsys):
    assert exit_code(evaluate_command.main, ["--workdir", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
def test_paper_suite(run, tmp_path):
    words = ["--workdir", str(run), "--suite", "paper", "--samples", "2", "--out", str(tmp_path)]
    assert exit_code(evaluate_command.main, [*words, "--perturb", "typos"]) == 0
    text = (tmp_path / "report.html").read_text()
    for part in ("Lengths", "Unseen tasks", "Perturbed typos"):
        assert f"<h2>{part}</h2>" in text


def test_a_description_longer_than_any_in_training(model):
    texts = [dataclasses.replace(a, prompt=np.arange(5, 5 + n)) for a, n in zip(
        asked([60, 60]), (20, 30), strict=True)]  # fmt: skip
    together, _ = answering.greedy_answers(model, texts, max_new_tokens=3, batch=2)
    assert together == [
        answering.greedy_answers(model, [a], max_new_tokens=3, batch=1)[0][0] for a in texts
    ]
    with pytest.raises(answering.AnsweringError, match="takes 49 tokens, but this model has room"):
        answering.prompts(model, [dataclasses.replace(texts[0], prompt=np.arange(49))])


def test_tasks_share_batches(model, monkeypatch):
    """Few questions of several tasks are read side by side, and answered as each task alone."""
    sizes = []
    greedy_answers = answering.greedy_answers

    def counting(model, some, **named):
        sizes.append(len(some))
        return greedy_answers(model, some, **named)

    what = {"lengths": ["2s"], "samples": 3, "progress": False, "batch": 4}
    alone = [evaluate(model, tasks=[task], **what)[0] for task in ("qa1", "qa5")]
    monkeypatch.setattr(answering, "greedy_answers", counting)
    assert same(evaluate(model, tasks=["qa1", "qa5"], **what), alone)
    assert sizes == [4, 2]


@pytest.mark.parametrize("decode", ("greedy", "teacher-forced"))
def test_each_question_has_its_own_room(model, decode):
    """Beside a question with room for more: the same layout and the same answer."""
    texts = asked((90, 40))
    answers, more = answering.greedy_answers, {}
    if decode == "teacher-forced":
        answers = answering.teacher_forced_answers
        more = {"targets": [np.arange(5, 9, dtype=np.int32)] * 2}
    both = answers(model, texts, max_new_tokens=[2, 7], batch=2, **more)[0]
    for text, room, answer in zip(texts, (2, 7), both, strict=True):
        more = {"targets": more["targets"][:1]} if more else {}
        assert answers(model, [text], max_new_tokens=room, batch=1, **more)[0] == [answer]
