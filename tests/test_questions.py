"""Where questions come from: files of others, lengths counted by others, what has changed since."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny_run

from rmt_jax.evaluation import evaluate, questions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_run.api.load(tiny_run.save(tmp_path_factory.mktemp("run"), tiny_run.config()))


def test_babilong_files(model, tmp_path):
    rows = [
        {"input": f"Rain fell. Mary went to the {p}.", "question": "Where is Mary? ", "target": p}
        for p in ("garden", "office", "kitchen")
    ]
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "0k.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "qa1").mkdir(parents=True)
    (tmp_path / "data" / "qa1" / "1k.json").write_text("\n".join(map(json.dumps, rows)))
    source = questions.open_source(str(tmp_path), model)
    assert source.count("qa1", "0k", 100) == 3 and source.count("qa1", "1k", 2) == 2
    assert [q.target for q in source.ask("qa1", "1k", range(0, 2))] == ["garden", "office"]
    assert [q.target for q in source.ask("qa1", "1k", range(2, 3))] == ["kitchen"]
    assert source.ask("qa1", "0k", range(1))[0].asked.context.tolist() == tiny_run.words().encode(
        " Rain fell. Mary went to the garden."
    )
    found = evaluate(model, source=source, tasks=["qa1"], lengths=["0k"], samples=9, progress=False)
    assert found[0].samples == 3
    with pytest.raises(questions.QuestionError, match="holds neither qa2/4k.json"):
        source.count("qa2", "4k", 1)
    (tmp_path / "qa1" / "2k.json").write_text('[{"input": "x"}]')
    with pytest.raises(questions.QuestionError, match="record 0: no question"):
        source.ask("qa1", "2k", range(1))


def test_lengths_counted_by_another_tokenizer_read_the_same_text(model):
    class Letters:
        """A tokenizer of which a token is a letter."""

        name, vocab_size, end, pad, answer = "letters", 300, 1, 0, 2

        def sentence(self, text):
            return tuple(ord(c) for c in " " + text)

        def decode(self, ids):
            return "".join(map(chr, ids))

    data = dataclasses.replace(model.config.data, background="none")
    source = questions.Generated(model, data=data, lengths_by=Letters())
    q = source.ask("qa1", "0k", range(1))[0]
    text = tiny_run.words().decode(q.asked.context)
    assert len(text) + len(q.question) + 1 == q.characters and text.startswith(" ")


def test_lengths_in_segments_are_of_the_models_whoever_counts(model):
    coarse = SimpleNamespace(name="other")  # never asked
    one = questions.Generated(model)
    other = questions.Generated(model, data=one.data)
    other.counter = coarse
    first, second = (s.ask("qa1", "3s", range(1))[0] for s in (one, other))
    assert first.asked.context.tolist() == second.asked.context.tolist()


def test_files_that_changed_are_asked_anew(model, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "out"
    (folder / "qa1").mkdir(parents=True)
    for place in ("kitchen", "office"):
        row = {"input": f"Mary went to the {place}.", "question": "Where is Mary?"}
        (folder / "qa1" / "0k.json").write_text(json.dumps([row | {"target": place}]))
        source = questions.open_source(str(folder), model)
        evaluate(model, source=source, tasks=["qa1"], lengths=["0k"], out=out, progress=False)
        (file,) = (out / "cells").iterdir()
        assert json.loads(file.read_text().splitlines()[1])["target"] == place


def test_what_files_cannot_be_told(model, tmp_path):
    with pytest.raises(questions.QuestionError, match="which --split and --lengths_by cannot"):
        questions.open_source(str(tmp_path), model, split="test", lengths_by="nobody/has-it")
