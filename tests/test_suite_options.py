"""The synthetic suites as they are asked for: options, scores, commands."""

import csv
import dataclasses
import json

import pytest
import tiny_run
from commands import exit_code
from suite_texts import RULER, SUITES, TOKENS, composer

from rmt_jax import ask, cli, evaluate, report
from rmt_jax.config import Config, ConfigError, Data, Evaluation, Facts, Model, Prompt, Stage
from rmt_jax.data import draws, tasks
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import Loader
from rmt_jax.data.tasks import TaskError
from rmt_jax.evaluation import answer_log, scoring
from rmt_jax.report import page


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recall": {"pair": 3}}, r"no field 'data\.task_options\.recall\.pair'.*Did you mean"),
        ({"recall": {"rewrites": 1.5}}, r"data\.task_options\.recall\.rewrites must be between 0"),
        ({"recall": {"pairs": "many"}}, r"recall\.pairs takes a whole number, but got 'many'"),
        ({"recall": {"key_symbols": 10**6}}, r"There are 1,\d+ symbols, not 1,000,000"),
        ({"recal": {"pairs": 3}}, "options of 'recal', but there is no such task.*as recall"),
        ({"qa1": {"pairs": 3}}, r"no field 'data\.task_options\.qa1\.pairs'"),
        ({"vt": {"haystack": "hay"}}, r"vt\.haystack must be one of noise, background"),
    ],
)
def test_options_that_there_are_not_are_refused(options, sentence):
    data = Data(tasks=("recall", "vt", "qa1"), task_options=options)
    with pytest.raises(ConfigError, match=sentence):
        tasks.check(Config(data=data))


def test_options_from_the_command_line():
    text = {"data.task_options.recall.pairs": "7", "data.task_options.vt.hops": "2"}
    config = cli.apply_overrides(Config(), text)
    assert config.data.task_options == {"recall": {"pairs": 7}, "vt": {"hops": 2}}
    config = cli.apply_overrides(config, {"data.task_options.recall.pairs": "9"})
    assert config.data.task_options["recall"] == {"pairs": 9}
    assert hash(config) != hash(Config())


@pytest.mark.parametrize(
    ("name", "length", "options", "sentence"),
    [
        ("recall", "2000", {"key_size": 1, "rewrites": 0.0}, "more than the 16 different keys"),
        ("recall", "3", {}, "no pair fits in a text of 3 tokens"),
        ("kv_retrieval", "20", {}, "no pair fits in a text of 20 tokens"),
        ("cwe", "50", {}, "do not fit in a text of 50 tokens"),
        ("cwe", "900", {"other_repeats": 9}, "common words stand 6 times, others 9"),
        ("fwe", "12", {}, "too short to count in"),
        ("vt", "900", {"letters": 3, "hops": 9999}, "more names than 3 letters make"),
        ("niah_single_1", "9", {}, "no sample fits a length of 9"),
    ],
)
def test_texts_that_cannot_be_made_are_sentences(name, length, options, sentence):
    made = composer(name, task_options={name: options})
    with pytest.raises((TaskError, DataError), match=sentence):
        made.sample(name, length, 0, 0)


def test_too_few_texts_for_a_split():
    with pytest.raises(DataError, match="None of 1000 texts belongs to the test split"):
        draws.of_split("test", lambda attempt: ["always this"], lambda drawn: drawn)


# Scores, and all the way through.


def test_scores_are_those_of_ruler():
    """RULER's string_match_all: the share of the values that stand in the output."""
    parts = ("4015059", "8132162", "1003183", "1845753")
    record = answer_log.AnswerRecord(
        "What?", ", ".join(parts), "", None, None, 1, 1, 0.0, 0.0, parts=parts
    )
    for output, right, whole in (
        (", ".join(parts), 1.0, True),
        ("1845753, 1003183, 8132162 and 4015059.", 1.0, False),
        ("they are: 4015059 8132162", 0.5, False),
        ("401505 9", 0.0, False),
    ):
        assert scoring.score_of("match_all", (), record, output) == right
        assert scoring.score_of("exact", (), record, output) == whole


def test_suites_are_not_asked_of_models_of_other_tasks():
    babi = tasks.usable(Data(tasks=("qa1",)))
    assert "qa2" in babi and not set(babi) & set(SUITES)
    assert set(tasks.usable(Data(tasks=("vt",)))) == set(RULER)
    assert tasks.guess("b", Data(tasks=("qa1",))) == ""
    assert tasks.guess("b f", Data(tasks=("recall",))) == "recall"
    asked = "What is the special magic number for red-hat mentioned in the provided text?"
    assert tasks.guess(asked, Data(tasks=("vt", "niah_single_2"))) == "niah_single_2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny model of segments that hold RULER's questions."""
    config = tiny_run.config()
    config = config.replace(
        model=dataclasses.replace(config.model, segment_tokens=384),
        data=Data(tasks=("niah_single_1", "niah_multivalue", "recall")),
        evaluation=Evaluation(lengths=("1s",), samples=2, batch=2),
    )
    return tiny_run.save(tmp_path_factory.mktemp("suites") / "run", config)


def test_needles_are_evaluated(run, tmp_path, capsys):
    words = ["--workdir", str(run), "--tasks", "niah_single_1,niah_multivalue,vt,recall"]
    words += ["--lengths", "4k", "--samples", "2", "--out", str(tmp_path)]
    assert exit_code(evaluate.main, words) == 0
    assert "niah_multivalue" in capsys.readouterr().out
    tree = json.loads((tmp_path / "summary.json").read_text())
    found = {result["task"]: result for result in tree["results"]}
    assert set(found["niah_multivalue"]["right"]) == {"match_all", "exact"}
    assert found["niah_single_1"]["facts"] == 1 and found["niah_multivalue"]["facts"] == 4
    assert found["vt"]["facts"] == 5 and found["recall"]["facts"] > 500
    assert found["recall"]["cell"] == "rmt" and found["recall"]["memory"] == 2 * 16
    assert len(found["recall"]["depths"]) == 2 and found["recall"]["chance"] == 1 / 16
    record = json.loads((tmp_path / "answers/niah_multivalue_4k.jsonl").read_text().split("\n")[1])
    assert record["target"] == ", ".join(record["parts"]) and len(record["parts"]) == 4
    assert 3700 < record["tokens"] < 3760
    section = page.Section("Lengths", "Needles.", report.read(tmp_path))
    page.write(tmp_path, [section], "A tiny model.")
    text = (tmp_path / "report.html").read_text()
    assert all(f"<td>{name}</td>" in text for name in ("NIAH_MULTIVALUE", "RECALL", "VT"))


def test_they_are_asked(run, tmp_path, capsys):
    text = tmp_path / "text.txt"
    sample = composer("niah_single_1").sample("niah_single_1", "600", 0, 0)
    text.write_text(TOKENS.decode(sample.context))
    words = ["--workdir", str(run), "--file", str(text), "--question", "Which variables?"]
    assert exit_code(ask.main, [*words, "--task", "vt"]) == 0
    assert "read 60" in capsys.readouterr().err


def test_the_summary_has_the_main_score(run, tmp_path):
    words = ["--workdir", str(run), "--tasks", "vt", "--lengths", "2s", "--samples", "2"]
    words += ["--no_reset", "--perturb", "paraphrase", "--out", str(tmp_path)]
    assert exit_code(evaluate.main, words) == 0
    for folder in (tmp_path, tmp_path / "paraphrase"):
        with open(folder / "summary.csv") as file:
            assert [row["score"] for row in csv.DictReader(file)] == ["match_all"]


def test_stages_say_how_many_pairs():
    data = Data(tasks=("recall",), background="none", task_options={"recall": {"key_size": 1}})
    config = Config(
        model=dataclasses.replace(Model(), segment_tokens=32),
        prompt=Prompt(source="none"),
        data=data,
        stages=(Stage(1, 5, 16, 1e-3, facts=(Facts(2, 5),)),),
    )
    batch = Loader(config, TOKENS).batch_at(0)
    counts = {
        TOKENS.decode(row[mask]).count(":")
        for row, mask in zip(batch.tokens[:, 0], batch.mask[:, 0], strict=True)
    }
    assert counts <= {2, 3, 4, 5} and len(counts) > 2
