"""evaluate --perplexity: numbers against the model's own logits, resumed runs, the command."""

import csv
import json
import math

import jax
import numpy as np
import pytest
import tiny_run
from test_data_texts import jsonl, text_of

from rmt_jax import api, cli, evaluate
from rmt_jax.config import Data, Texts
from rmt_jax.data import segmentation
from rmt_jax.evaluation import perplexity
from rmt_jax.evaluation.answer_log import AnswerLog
from rmt_jax.report import language
from rmt_jax.results import ratio_error
from rmt_jax.types import Prompt

LENGTH = tiny_run.LENGTH
PLACES = ("position", "segment", "place")


@pytest.fixture(autouse=True)
def few_segments_at_once(monkeypatch):
    """So that short texts take several blocks."""
    monkeypatch.setattr(perplexity, "BLOCK", 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts, and runs of every memory that were trained on them."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMT_JAX_CACHE", str(folder / "cache"))
        sizes = (30, 2, 9, 17, 5)
        jsonl(folder / "t.jsonl", [{"text": text_of(n, size)} for n, size in enumerate(sizes)])
        for cell in ("rmt", "delta", "none"):
            save(folder / cell, cell, folder / "t.jsonl")
        yield folder


def save(workdir, cell, texts, source="description"):
    config = tiny_run.config(cell, source)
    data = Data(tasks=("qa1", "novels"), texts={"novels": Texts(train=str(texts))})
    return tiny_run.save(workdir, config.replace(data=data))


def logits_of(model, tokens, reset=False):
    """f64[n, V] at every place of i32[n], by the model's own forward pass; `reset`: segment by
    segment, each with a fresh memory."""
    described = np.asarray(model.tokenizer.sentence("Continue the text."), np.int32)
    room = model.config.prompt.tokens
    prompt = Prompt(
        np.pad(described, (0, room - len(described)))[None],
        (np.arange(room) < len(described))[None],
        np.ones(1, np.int32),
    )
    stretches = [tokens] if not reset else np.split(tokens, range(LENGTH, len(tokens), LENGTH))
    found = [np.asarray(model.forward(one[None], prompt=prompt)[0])[0] for one in stretches]
    return np.concatenate(found).astype(np.float64)


def entropies(model, tokens, reset=False):
    """f64[n - 1] nats of every token but the first."""
    log = logits_of(model, tokens[:-1], reset)
    log -= log.max(axis=1, keepdims=True)
    log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
    return -log[np.arange(len(log)), tokens[1:]]


@pytest.mark.parametrize("cell", ["rmt", "delta"])
def test_numbers_are_those_of_the_models_logits(place, cell):
    """In all, text by text, and in every bin of every view; with the memory, and with every segment
    read by a fresh one."""
    model = api.load(place / cell)
    # What begins as zeros, as the values of a delta memory do, would hide it.
    rng = np.random.default_rng(0)
    model.params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape), model.params)
    reading = perplexity.open_texts(model, str(place / "t.jsonl"))
    result = perplexity.measure(model, reading, batch=2, progress=False)
    size = model.tokenizer.token_bytes
    expected = {}  # (view, place) -> sums
    for number, (name, sums) in enumerate(result.texts):
        tokens = np.asarray(reading.texts.text(number), np.int32)
        ways = entropies(model, tokens), entropies(model, tokens, reset=True)
        assert name == f"t.jsonl:{number + 1}" and sums.tokens == len(tokens) - 1
        text = text_of(number, (30, 2, 9, 17, 5)[number])
        assert sums.bytes == len(text.encode()) - size[tokens[0]]
        for total, true in zip((sums.nats, sums.reset_nats), ways, strict=True):
            assert total == pytest.approx(true.sum(), rel=1e-4)
        for i, both in enumerate(zip(*ways, strict=True)):
            for view, at in zip(PLACES, (i + 1, i // LENGTH, i % LENGTH), strict=True):
                held = expected.setdefault((view, at), np.zeros(4))
                held += [1, size[tokens[i + 1]], *both]
    assert perplexity._program(model).function._cache_size() == 1  # whatever the lengths, both ways
    assert result.total.sums.tokens == sum(sums.tokens for _, sums in result.texts)
    assert len(result.view("segment")) >= 7 and result.view("position")[-1].stop > 4 * LENGTH
    for one in result.bins:
        inside = [v for (view, at), v in expected.items()
                  if view == one.view and one.start <= at < one.stop]  # fmt: skip
        true = np.sum(inside, axis=0)
        sums = one.sums
        assert (sums.tokens, sums.bytes) == tuple(true[:2])
        np.testing.assert_allclose((sums.nats, sums.reset_nats), true[2:], rtol=1e-4)
        assert one.bits_per_byte == pytest.approx(true[2] / math.log(2) / true[1], rel=1e-4)
        assert one.reset_perplexity == pytest.approx(math.exp(true[3] / true[0]), rel=1e-3)
    for view in PLACES:  # every token is in one bin
        assert sum(one.sums.tokens for one in result.view(view)) == result.total.sums.tokens
    first = result.view("segment")[0]
    assert first.gain == 0 and abs(result.total.gain) > 1e-4  # there is a memory, after a segment


def test_errors_are_those_of_texts_drawn_again():
    rng = np.random.default_rng(0)
    below = rng.uniform(50, 150, 40)
    above = 3 * below + rng.normal(0, 20, 40)
    picks = rng.integers(0, 40, (20_000, 40))
    drawn = above[picks].sum(axis=1) / below[picks].sum(axis=1)
    assert ratio_error(above, below) == pytest.approx(drawn.std(), rel=0.05)
    assert ratio_error([1.0], [2.0]) is None
    equal = ratio_error(above, [100.0] * 40)  # the standard error of a mean
    assert equal == pytest.approx(above.std(ddof=1) / math.sqrt(40) / 100)


def test_a_resumed_evaluation_equals_an_unbroken_one(place, tmp_path, monkeypatch):
    model = api.load(place / "rmt")
    reading = perplexity.open_texts(model, str(place / "t.jsonl"))
    options = {"batch": 2, "progress": False}
    whole = perplexity.measure(model, reading, out=tmp_path / "whole", **options)
    append, count = AnswerLog.append, 0

    def killed(log, records):
        nonlocal count
        count += 1
        if count == 2:
            append(log, records[:1])  # in the middle of a group
            raise KeyboardInterrupt
        append(log, records)

    monkeypatch.setattr(AnswerLog, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        perplexity.measure(model, reading, out=tmp_path / "broken", **options)
    monkeypatch.setattr(AnswerLog, "append", append)
    read = []
    monkeypatch.setattr(
        perplexity, "_read", lambda *args, f=perplexity._read: read.append(len(args[1])) or f(*args)
    )
    assert perplexity.measure(model, reading, out=tmp_path / "broken", **options) == whole
    assert read == [2, 1]
    assert perplexity.measure(model, reading, out=tmp_path / "broken", **options) == whole
    assert read == [2, 1]  # nothing
    shorter = perplexity.measure(model, reading, tokens=50, out=tmp_path / "broken", **options)
    assert shorter.total.sums.tokens == sum(min(s.tokens, 49) for _, s in whole.texts)
    first = perplexity.measure(model, reading, samples=2, progress=False)
    assert [name for name, _ in first.texts] == ["t.jsonl:1", "t.jsonl:2"]


@pytest.mark.parametrize("align", ["left", "right", "sentence"])
def test_segments_are_cut_as_in_training(place, align):
    model = api.load(place / "none")
    text = np.asarray(model.tokenizer.encode(text_of(3, 40)), np.int32)
    for size, block in ((7, 1), (16, 3), (50, 64)):
        for stop in (1, size, size + 1, 3 * size - 1, len(text)):
            parts = list(perplexity.segments(text[:stop], size, align, model.tokenizer, block))
            assert all(0 < len(part) - 1 <= block for part in parts)
            assert all(a[-1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
            bounds = np.concatenate([[0], *(part[1:] for part in parts)])
            whole = segmentation.passage_bounds(text[:stop], stop, size, align, model.tokenizer)
            assert bounds.tolist() == whole.tolist()


def test_bins_hold_the_places_that_they_name():
    for view, first in (("position", 1), ("segment", 0), ("place", 0)):
        places = np.arange(first, 70_000)
        numbers = perplexity._bins(view, places)
        assert (np.diff(numbers) >= 0).all()
        for number in np.unique(numbers).tolist():
            inside = places[numbers == number]
            start, stop = perplexity._range(view, number)
            assert inside[0] == start and (inside[-1] == stop - 1 or inside[-1] == places[-1])


def test_the_command_writes_a_table_and_a_curve(place, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    argv = ["--workdir", str(place / "rmt"), "--perplexity", "--out", str(tmp_path / "out")]
    assert evaluate.main([*argv, "--split", "train", "--tokens", "120"]) == 0
    said = capfd.readouterr().out
    assert "bits/byte" in said and "texts of novels, train split" in said
    rows = list(csv.DictReader((tmp_path / "out" / "perplexity.csv").read_text().splitlines()))
    assert rows[0]["view"] == "all" and {row["view"] for row in rows} == {"all", *PLACES}
    found = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert float(rows[0]["bits_per_byte"]) == pytest.approx(found["bins"][0]["bits_per_byte"], 1e-5)
    gain = float(rows[0]["reset_bits_per_byte"]) - float(rows[0]["bits_per_byte"])
    assert float(rows[0]["gain"]) == pytest.approx(gain, abs=2e-6)
    assert sum(text["tokens"] for text in found["texts"]) == int(rows[0]["tokens"])
    for name in ("perplexity.png", "perplexity.pdf"):
        assert (tmp_path / "out" / name).stat().st_size > 5_000
    # Other segments, another folder, no memory: no control either.
    argv = ["--workdir", str(place / "none"), "--perplexity", "--data", str(place / "t.jsonl")]
    argv += ["--out", str(tmp_path / "none"), "--segment_tokens", "32", "--samples", "1"]
    assert evaluate.main(argv) == 0
    said = capfd.readouterr().out
    assert "there is no control" in said and "segments of 32 tokens" in said
    assert "one text: no standard errors" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "nowhere"], "--data: there is no file or folder 'nowhere'"),
        (["--lengths", "4k", "--inspect"], "asks no questions, so leave out --lengths, --inspect"),
        (["--tokens", "1"], "--tokens is 1: a text needs 2"),
        (["--segment_tokens", "-1"], "model.segment_tokens must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(
    place, tmp_path, monkeypatch, capfd, words, sentence
):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    argv = ["--workdir", str(place / "none"), "--perplexity", "--split", "train"]
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, [*argv, "--out", str(tmp_path), *words])
    assert stop.value.code == 2 and sentence in capfd.readouterr().err


def test_which_texts(place, tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    config = tiny_run.config("none")
    plain = api.load(tiny_run.save(tmp_path / "plain", config))
    with pytest.raises(perplexity.PerplexityError, match="trained on none: give a folder"):
        perplexity.open_texts(plain, "")
    two = {name: Texts(train=str(place / "t.jsonl"), description=f"{name}.") for name in "ab"}
    data = Data(tasks=("a", "b"), texts=two)
    both = api.load(tiny_run.save(tmp_path / "both", config.replace(data=data)))
    with pytest.raises(perplexity.PerplexityError, match="trained on a, b: choose one with --data"):
        perplexity.open_texts(both, "")
    assert perplexity.open_texts(both, "b", "train").description == "b."
    learned = save(tmp_path / "learned", "none", place / "t.jsonl", source="learned")
    reading = perplexity.open_texts(api.load(learned), str(place / "t.jsonl"))
    assert reading.task_index == 1 and len(reading.texts) == 5
    settings = tiny_run.config("none", source="learned")
    untold = api.load(tiny_run.save(tmp_path / "untold", settings))
    with pytest.raises(perplexity.PerplexityError, match="no prompt to read these texts with"):
        perplexity.open_texts(untold, str(place / "t.jsonl"))


def test_a_model_of_texts_alone_asks_nothing(place, tmp_path):
    data = Data(tasks=("novels",), texts={"novels": Texts(train=str(place / "t.jsonl"))})
    alone = tiny_run.save(tmp_path / "alone", tiny_run.config("none").replace(data=data))
    with pytest.raises(
        ValueError, match="trained on texts that ask nothing: measure it with --perp"
    ):
        evaluate.main(["--workdir", str(alone)])


def test_a_table_of_one_text_has_no_errors(place):
    model = api.load(place / "rmt")
    reading = perplexity.open_texts(model, str(place / "t.jsonl"))
    result = perplexity.measure(model, reading, samples=1, reset=False, progress=False)
    assert result.total.error is None and result.total.gain is None
    line = language.table(result).splitlines()[2].split()
    assert line[0] == "all" and len(line) == 4
