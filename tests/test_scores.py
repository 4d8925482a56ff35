"""The rules, against stored predictions with their official scores and against transformers' SQuAD
evaluation; the interval."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import pytest

from rmt_jax import api, report, scores
from rmt_jax.config import Config, Data, import_extensions
from rmt_jax.data import tasks
from rmt_jax.data.babi import table
from rmt_jax.evaluation import scoring
from rmt_jax.evaluation.answer_log import AnswerRecord


def labels(task: str) -> tuple[str, ...]:
    return tasks.create(task, Data()).labels


pytestmark = pytest.mark.portable

# Rows of Phi-3-mini-128k's published BABILong predictions (Apache-2.0), with hand-checked verdicts:
# task, question, target, output, official, corrected, exact, lm_eval.
ROWS = [
    ("qa1", "Where is John? ", "hallway", "Answer: John is in the hallway.", 1, 1, 0, 1),
    ("qa1", "Where is Mary? ", "bathroom", "Options:\n(A) hallway\n(B) bathroom\n(D", 0, 0, 0, 1),
    ("qa2", "Where is the football? ", "hallway", "", 0, 0, 0, 0),
    (
        "qa3",
        "Where was the apple before the hallway? ",
        "office",
        "Answer: Before the hallway the apple was in the office.\n\n\n\nII.",
        1,
        1,
        0,
        1,
    ),
    (
        "qa4",
        "What is the bathroom west of?",
        "garden",
        "- response: The bathroom is west of the garden.",
        1,
        1,
        0,
        1,
    ),
    (
        "qa4",
        "What is east of the bedroom?",
        "office",
        "Answer: The office\n\n\nQuestion: What is west of the kitchen?",
        0,
        1,
        0,
        1,
    ),
    (
        "qa5",
        "Who received the milk? ",
        "Bill",
        "Answer: Bill\n\nQuestion: Who took the football?\nAnswer: Fred",
        0,
        1,
        0,
        1,
    ),
]


@pytest.mark.parametrize("row", ROWS)
def test_stored_rows(row):
    task, question, target, output, *verdicts = row
    rules = ("official", "corrected", "exact", "lm_eval")
    assert [scores.score(r, labels(task), question, [target], output) for r in rules] == verdicts


@pytest.mark.parametrize(
    "task,question,target,output,official,corrected",
    [
        # Only the first sentence counts, and letter case does not.
        ("qa1", "Where is Mary?", "garden", "GARDEN. Or the office.", True, True),
        ("qa1", "Where is Mary?", "garden", "garden or office", False, False),
        ("qa1", "Where is Mary?", "garden", "", False, False),
        ("qa1", "Where is Mary?", "garden", "garden <example> office", True, True),
        # Labels that the question names are not counted.
        (
            "qa3",
            "Where was the milk before the office?",
            "garden",
            "before the office: garden",
            True,
            True,
        ),
        ("qa5", "Who gave the milk to Bill?", "Mary", "Mary gave the milk to Bill", True, True),
        # Fault one: 'one' stands inside 'none'.
        ("qa7", "How many objects is Mary carrying?", "none", "none", False, True),
        ("qa7", "How many objects is Mary carrying?", "one", "none", False, False),
        ("qa7", "How many objects is Mary carrying?", "two", "two", True, True),
        # Fault two: the cut at 'Question' never fires.
        ("qa1", "Where is Mary?", "garden", "garden\nQuestion: is it the office?", False, True),
        # Lists: the order does not matter, the set does.
        ("qa8", "What is Mary carrying?", "apple,milk", "milk, apple", True, True),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk", False, False),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk,apple,football", False, False),
        ("qa8", "What is Mary carrying?", "apple", "milk,apple", False, False),
        # Pairs of steps are labels, not lists.
        ("qa19", "How do you go from the office to the garden?", "n,w", "n,w", True, True),
        ("qa19", "How do you go from the office to the garden?", "n,w", "w,n", False, False),
    ],
)
def test_official_and_corrected(task, question, target, output, official, corrected):
    assert scores.official(labels(task), question, target, output) is official
    assert scores.corrected(labels(task), question, target, output) is corrected


def test_other_words_for_places():
    places = ("cellar", "attic")
    assert not scores.official(labels("qa1"), "Where is Mary?", "attic", "attic")
    assert scores.official(places, "Where is Mary?", "attic", "the attic")
    assert not scores.official(places, "Where is Mary?", "attic", "attic, cellar")


def test_exact_needs_no_labels_and_official_says_what_it_knows():
    assert scores.exact((), "Who?", "Ann", " Ann ")
    assert not scores.exact((), "Who?", "Ann", "ann")
    with pytest.raises(ValueError, match="the task has none"):
        scores.official((), "Who?", "Ann", "Ann")
    with pytest.raises(ValueError, match="No score is called 'best'"):
        scores.score("best", labels("qa1"), "Who?", ["Ann"], "Ann")


def test_every_label_is_right_for_itself_under_corrected():
    for task in table.ROWS:
        for label in labels(task):
            assert scores.corrected(labels(task), "?", label, label)
    assert len(table.ROWS) == 20 and len(labels("qa19")) == 12


def test_wilson_against_known_values():
    # Wilson 1927; the values of statsmodels' proportion_confint(method='wilson').
    assert scores.wilson(90, 100) == pytest.approx((0.82563, 0.94477), abs=1e-5)
    assert scores.wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-5)
    assert scores.wilson(100, 100)[1] == pytest.approx(1.0)
    assert scores.wilson(0, 0) == (0.0, 1.0)


def test_baselines():
    assert scores.majority(["garden", "office", "garden", "kitchen"]) == 0.5
    assert scores.majority([]) == 0.0
    assert scores.chance(labels("qa6"), ["yes", "no"]) == 0.5
    assert scores.chance(labels("qa8"), ["apple", "apple,milk", "nothing"]) == pytest.approx(1 / 3)
    assert scores.chance((), ["a", "b"]) == 0.5


def test_every_stored_prediction_file():
    shared = os.environ.get("RMT_JAX_SHARED")
    if not shared:
        pytest.skip("set RMT_JAX_SHARED to the folder with data/babilong_predictions")
    folder = Path(shared) / "data" / "babilong_predictions"
    for name, expected in json.loads((folder / "official_scores.json").read_text()).items():
        with open(folder / name, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        task = Path(name).name.split("_")[0]
        right = sum(
            scores.official(labels(task), row["question"], row["target"], row["output"])
            for row in rows
        )
        assert (len(rows), right) == (expected["n"], expected["correct"]), name


TEXTS = [
    ("the Eiffel Tower", "Eiffel tower."),
    ("a dog and a cat", "The cat, and the dog!"),
    ("in 1990", "1990"),
    ("no", "none"),
    ("", "something"),
    ("the", ""),
    ("well-known man", "wellknown"),
    ("apple apple pear", "apple pear pear"),
]


@pytest.mark.parametrize("target, output", TEXTS)
def test_squad_scores_are_those_of_the_evaluation_in_transformers(target, output):
    squad = pytest.importorskip("transformers.data.metrics.squad_metrics")
    assert scores.normalised((), "", target, output) == squad.compute_exact(target, output)
    assert scores.f1((), "", target, output) == pytest.approx(squad.compute_f1(target, output))


def test_contains_and_label():
    assert scores.contains((), "", "red car", "It is a RED car!")
    assert not scores.contains((), "", "red car", "red, old car")
    teams = ("billing", "billing abroad", "support")
    assert scores.label(teams, "", "billing", "Billing, not support.")
    assert not scores.label(teams, "", "support", "Billing, not support.")
    assert scores.label(teams, "", "billing abroad", "the billing abroad team")
    assert not scores.label(teams, "", "billing", "rebilling")


def test_the_best_of_several_right_answers_counts_but_match_all_wants_them_all():
    assert scores.score("exact", (), "?", ["a", "b"], "b") == 1
    assert scores.score("f1", (), "?", ["red", "red car"], "blue car") == pytest.approx(0.5)
    assert scores.score("match_all", (), "?", ["4", "17", "9"], "It is 4 and 17.") == 2 / 3


def test_a_function_of_ones_own_scores_only_where_its_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "own_scores.py").write_text(
        "def close(output, targets, question):\n"
        "    return max(0.0, 1 - abs(float(output) - float(targets[0])) / 10)\n\n\n"
        "def wrong(output, targets, question):\n"
        "    return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(scores.ScoreError, match="name it in config.imports"):
        scores.score("own_scores:close", (), "?", ["10"], "12")
    import_extensions(Config(imports=("own_scores",)))
    assert scores.score("own_scores:close", (), "?", ["10"], "12") == pytest.approx(0.8)
    with pytest.raises(scores.ScoreError, match="from 0 to 1, not 7"):
        scores.score("own_scores:wrong", (), "?", ["10"], "12")
    with pytest.raises(scores.ScoreError, match="no function 'far'"):
        scores.check("own_scores:far")


@pytest.mark.parametrize(("score", "right"), [("exact", True), ("", False)])
def test_the_score_of_a_config_comes_first(score, right):
    """In tables, and for the depths of what was answered rightly."""
    model = api.load("multitask-ten")
    evaluation = dataclasses.replace(model.config.evaluation, score=score)
    model.config = model.config.replace(evaluation=evaluation)
    record = AnswerRecord(
        question="How many objects is Mary carrying?", target="none", output="none",
        reset_output=None, depth=0.25, tokens=10, characters=40, gpt2_tokens=9.0, seconds=0.1,
    )  # fmt: skip
    how = {"length": "1s", "perturb": "", "decoding": "greedy", "counted_by": "builtin"}
    result = scoring.score_answers(model, [record], task="qa7", **how)
    assert next(iter(result.right)) == (score or "official")
    assert result.depths == ((0.25, right),)
    assert f"score: {score or 'official'}, per cent" in report.table([result])
