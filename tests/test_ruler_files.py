"""RULER's files: in the form that its scripts document, filled to their length, made once."""

import json
import re
from pathlib import Path

import pytest
from commands import exit_code
from test_suites import SOLVERS

from rmt_jax import prepare
from rmt_jax.config import Data
from rmt_jax.data import ruler_files, tasks, tokenizer
from rmt_jax.data.compose import Sample
from rmt_jax.data.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "ruler.jsonl"
# The tasks of its lines; the lengths in it were counted by hand, in words.
TASKS = (
    "niah_single_1",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
)
TOKENS = tokenizer.load()


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text):
        return text.split()

    def decode(self, words):
        return " ".join(words)


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_the_form_is_the_documented_one(number):
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8").splitlines()[number])
    task = tasks.create(TASKS[number], Data())
    text = wanted["input"].removeprefix(task.instruction)
    context, _, question = text.rpartition("\n")
    sample = Sample(
        task.name, context.split(), question.removeprefix(task.lead), ("",), (), (),
        parts=tuple(wanted["outputs"]),
    )  # fmt: skip
    found = ruler_files.record(task, sample, number, Words())
    assert list(found) == list(wanted)  # the order of the fields
    assert found == wanted
    assert task.matches(sample.question)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(out, *more) -> int:
    return exit_code(prepare.main, ["--out", str(out), "--format", "ruler", *more])


def test_every_task_is_written_and_its_text_gives_the_answers(tmp_path):
    assert run(tmp_path, "--lengths", "2k,4096", "--samples", "2") == 0
    for name in ruler_files.TASKS:
        task = tasks.create(name, Data())
        for size in (2048, 4096):
            found = rows(tmp_path / str(size) / "data" / name / "test.jsonl")
            assert [row["index"] for row in found] == [0, 1]
            for row in found:
                asked = row["input"] + row["answer_prefix"]
                length = len(TOKENS.encode(asked)) + task.tokens_to_generate
                assert row["length"] == row["length_w_model_temp"] == length
                spare = 40 if name in ("cwe", "fwe") else 6
                assert size - spare < length <= size, name
                *_, last = row["input"].split(task.instruction)
                text, _, question = last.rpartition("\n")
                assert sorted(SOLVERS[name](text, question)) == sorted(row["outputs"]), name
                if name.startswith("niah"):
                    at = row["input"].index(row["outputs"][0])
                    assert row["token_position_answer"] == len(TOKENS.encode(row["input"][:at]))


def test_worked_examples_are_right_and_others_than_the_question(tmp_path):
    assert run(tmp_path, "--lengths", "2k,4k", "--samples", "2", "--tasks", "vt,cwe") == 0
    for size, repeats, words in ((2048, (3, 1), 20), (4096, (10, 3), 40)):
        for row in rows(tmp_path / str(size) / "data" / "vt" / "test.jsonl"):
            example, asked = row["input"].split("\n\nMemorize and track")
            before, answer = example.split("they are:  ")
            question = before.split("Question: ")[1]
            assert SOLVERS["vt"](before, question) == answer.split()
            assert all(len(name) == 3 for name in answer.split()) and len(answer.split()) == 5
            assert all(len(name) == 5 for name in row["outputs"])
            number = re.findall(r"value (\d+)", question)[0]
            assert number not in asked and len(TOKENS.encode(before)) <= 500
        for row in rows(tmp_path / str(size) / "data" / "cwe" / "test.jsonl"):
            _, example, asked = row["input"].split("Below is a numbered list of words.")
            text, answer = example.split("in the list are:")
            assert answer.endswith("\n") and not answer.endswith("\n\n")
            said = re.findall(r"\d+\. (\S+)", answer)
            assert SOLVERS["cwe"](text, "the 10") == sorted(said)
            listed = re.findall(r"\d+\. (\S+)", text)
            assert len(set(listed)) == words
            assert {listed.count(word) for word in said} == {repeats[0]}
            assert {listed.count(word) for word in set(listed) - set(said)} == {repeats[1]}
            assert said != row["outputs"]


def test_what_is_there_is_kept(tmp_path, capsys):
    few = ("--lengths", "1k", "--samples", "2", "--tasks", "niah_single_1,fwe")
    assert run(tmp_path, *few) == 0
    path = tmp_path / "1024" / "data" / "fwe" / "test.jsonl"
    before = (path.stat().st_mtime_ns, path.read_bytes())
    assert run(tmp_path, *few) == 0
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    capsys.readouterr()
    assert run(tmp_path, *few, "--seed", "4") == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert run(tmp_path / "b", *few, "--num_shards", "2", "--shard_index", "1") == 0
    made = tmp_path / "b" / "1024" / "data"
    assert [p.name for p in made.iterdir()] == ["fwe"]
    assert (made / "fwe" / "test.jsonl").read_bytes() == path.read_bytes()


def test_splits_share_no_needle(tmp_path):
    found = {}
    for split in ("train", "validation", "test"):
        words = ("--lengths", "1k", "--samples", "20", "--tasks", "niah_single_1")
        assert run(tmp_path, *words, "--split", split) == 0
        path = tmp_path / "1024" / "data" / "niah_single_1" / f"{split}.jsonl"
        found[split] = {row["answer_prefix"] + row["outputs"][0] for row in rows(path)}
    assert len(found["train"] | found["validation"] | found["test"]) == 60


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tasks", "recall"), "RULER has no task 'recall': its tasks are niah_single_1"),
        (("--tasks", "niah_single_9"), "no such task"),
        (("--lengths", "4s"), "a number of tokens, 4096 or 4k, not '4s'"),
        (("--lengths", "100", "--tasks", "niah_single_1"), "no sample fits in 100 tokens"),
        (("--lengths", "1k", "--background", "/nowhere"), "no folder '/nowhere'"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(tmp_path, capsys, words, sentence):
    assert run(tmp_path, "--samples", "1", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_length_is_rulers():
    assert ruler_files.parse_length("4k") == 4096 and ruler_files.parse_length("300") == 300
    with pytest.raises(DataError):
        ruler_files.parse_length("0")
