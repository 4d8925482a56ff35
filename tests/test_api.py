"""`rmt_jax.load` and its model: reading in blocks, decoding with a cache, and wrong input."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from rmt_jax import api
from rmt_jax.config import Config, Prompt
from rmt_jax.models.inputs import InputError
from rmt_jax.models.sampling import Sampling, SamplingError

pytestmark = pytest.mark.portable

FORMS = [
    {"cell": "none"},
    {"cell": "rmt", "positions": "alibi", "conv_width": 3},
    {"cell": "prmt", "positions": "rotary"},
    {"cell": "armt", "conv_width": 2},
    {"cell": "delta", "positions": "alibi", "conv_width": 3},
    {"cell": "kv", "positions": "rotary"},
]


def model(form, prompt=None):
    prompt = prompt or Prompt("none", "every", tiny.WORDS)
    config = Config(model=tiny.settings(**form), prompt=prompt)
    return api.Model(config, tiny.model(prompt, **form)[1])


def by_rereading(model, ids, prompt, new):
    """Greedy continuation without a cache: the whole text again for every token."""
    for _ in range(new):
        # What follows a full segment is decoded inside it, as in `generate`.
        whole = (ids.shape[1] - 1) // model.segment_tokens * model.segment_tokens
        assert whole == 0, "the check covers one segment"
        logits, _ = model.forward(ids, prompt=prompt)
        ids = np.concatenate([ids, np.asarray(logits[:, -1].argmax(-1))[:, None]], axis=1)
    return ids[:, -new:]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["cell"])
def test_cached_decoding_is_reading_again(form):
    asked = Prompt("question", "every", tiny.WORDS)
    reader, told = model(form, asked), tiny.prompt()
    ids = np.random.default_rng(3).integers(0, tiny.VOCAB, (2, 4))
    wanted = by_rereading(reader, ids, told, 4)
    assert np.array_equal(reader.generate(ids, 4, prompt=told), wanted)
    # The same at the end of a longer tail with padding at either side.
    wide = np.pad(ids, ((0, 0), (1, 3)))
    known = np.pad(np.ones_like(ids, bool), ((0, 0), (1, 3)))
    memory = reader.initial_memory(2)
    assert np.array_equal(reader.generate_from(memory, wide, known, told, 4), wanted)


def test_texts_of_different_lengths_side_by_side():
    reader = model({"cell": "armt"})
    rng = np.random.default_rng(0)
    counts = np.array([[19], [8], [17]])  # tails of 3, 8 and 1 tokens
    ids = rng.integers(0, tiny.VOCAB, (3, 20))
    together = reader.generate(ids, 3, mask=np.arange(20) < counts)
    alone = [reader.generate(ids[i : i + 1, : counts[i, 0]], 3)[0] for i in range(3)]
    assert np.array_equal(together, alone)


def test_a_row_ends_at_the_end_token():
    reader = model({"cell": "rmt"})
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 5))
    free = reader.generate(ids, 4)
    end = int(free[0, 1])
    stopped = reader.generate(ids, 4, end=end)
    for row, full in zip(stopped, free, strict=True):
        place = list(full).index(end) if end in full else 4
        assert np.array_equal(row[: place + 1], full[: place + 1]) and (row[place:] == end).all()


def test_reading_in_parts_and_one_program_for_all_lengths(monkeypatch):
    monkeypatch.setattr(api, "BLOCK", 3)
    reader = model({"cell": "rmt"})
    tokens, mask = tiny.text(segments=8)
    at_once = reader.read(reader.initial_memory(2), tokens, mask)
    parts = reader.initial_memory(2)
    for few in (slice(0, 1), slice(1, 6), slice(6, 8)):
        parts = reader.read(parts, tokens[:, few].reshape(2, -1), mask[:, few])
    for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(parts), strict=True):
        assert np.array_equal(a, b)
    assert reader._read.function._cache_size() == 1
    _, memory = reader.forward(tokens[1:].reshape(1, -1))
    np.testing.assert_allclose(memory.state[0], at_once.state[1], atol=1e-5)


def test_forward_takes_a_ragged_text():
    reader = model({"cell": "rmt"})
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, (1, 16))
    logits, memory = reader.forward(ids[:, :11])
    whole, later = reader.forward(ids)  # what follows changes nothing that stands before
    np.testing.assert_allclose(logits, whole[:, :11], atol=1e-5)
    assert np.abs(memory.state - later.state).max() > 1e-3  # but the memory knows of it


def test_wrong_input_gets_a_sentence():
    reader = model({"cell": "rmt"})
    told, asked = model({"cell": "rmt"}, Prompt("question", "every", tiny.WORDS)), tiny.prompt()
    asked = asked._replace(tokens=np.full_like(asked.tokens, 99))
    memory = reader.initial_memory(2)
    ids = np.zeros((2, 8), int)
    cases = [
        (lambda: reader.read(memory, ids[:, :7]), "7 tokens are no multiple of 8"),
        (lambda: reader.read(memory, ids[:1]), "memory is for 2 texts, but tokens hold 1"),
        (lambda: reader.read(memory, ids + 37), "vocabulary has 37"),
        (lambda: reader.read(memory, ids * 1.0), "whole numbers"),
        (lambda: reader.read(memory, ids, np.ones((2, 7))), "mask is"),
        (lambda: reader.forward(ids[:, :0]), "no tokens to read"),
        (lambda: reader.generate(ids, mask=np.zeros((2, 8))), "Text 0 is empty"),
        (lambda: reader.generate_from(memory, np.zeros((2, 9), int)), "a segment is 8"),
        (lambda: reader.generate_from(memory, ids, max_new_tokens=0), "at least 1"),
        (
            lambda: reader.generate(ids, max_new_tokens=30),
            "= 39 positions, but the backbone has 32",
        ),
        (lambda: reader.tokenizer, "holds no tokenizer"),
        (lambda: reader.generate(ids[:1], memory=memory), "memory is for 2 texts, but tokens hol"),
        (lambda: told.forward(ids, prompt=asked), "Token ids run from 99 to 99"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()


def test_importing_the_package_does_not_import_jax():
    code = "import rmt_jax, sys; assert 'jax' not in sys.modules; rmt_jax.load; rmt_jax.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stderr


def test_several_tokens_may_end_a_row():
    reader = model({"cell": "rmt"})
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, (3, 5))
    free = reader.generate(ids, 6, end=())
    ends = (int(free[0, 1]), int(free[1, 3]))
    stopped = reader.generate(ids, 6, end=ends)
    for row, full in zip(stopped, free, strict=True):
        place = next((i for i, token in enumerate(full) if token in ends), 6)
        assert np.array_equal(row[: place + 1], full[: place + 1])
        assert (row[place:] == full[min(place, 5)]).all()


@pytest.mark.parametrize(
    "sampling", (pytest.param(None, marks=pytest.mark.slow), Sampling(2.0, 20, 0.95, 3))
)
def test_streamed_tokens_are_those_made_at_once(sampling):
    reader, told = model(FORMS[1], Prompt("question", "every", tiny.WORDS)), tiny.prompt()
    ids = np.random.default_rng(4).integers(0, tiny.VOCAB, (2, 5))
    memory = reader.initial_memory(2)
    free = reader.generate_from(memory, ids, None, told, 6, (), sampling)
    ends = (int(free[0, 2]), int(free[1, 4]))
    made = reader.generate_from(memory, ids, None, told, 6, ends, sampling)
    found = list(reader.stream(memory, ids, None, told, 6, ends, sampling))
    for row, (full, streamed) in enumerate(zip(made, np.stack(found, axis=1), strict=True)):
        place = next(i for i, token in enumerate(full) if token in ends)
        assert np.array_equal(full[: place + 1], streamed[: place + 1]), row
    stops = [next(i for i, token in enumerate(row) if token in ends) for row in made]
    assert len(found) == max(stops) + 1


def test_a_seed_gives_the_same_draws_and_another_others():
    reader = model({"cell": "rmt"})
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 5))

    def drawn(**settings):
        return reader.generate(ids, 8, end=(), sampling=Sampling(**settings))

    assert np.array_equal(drawn(seed=5), drawn(seed=5))
    assert not np.array_equal(drawn(seed=5), drawn(seed=6))
    assert not np.array_equal(*drawn(seed=5))  # rows draw by themselves
    greedy = reader.generate(ids, 8, end=())
    assert np.array_equal(drawn(top_k=1, seed=9), greedy)
    assert np.array_equal(drawn(top_p=1e-6, seed=9), greedy)
    assert np.array_equal(drawn(temperature=1e-6, seed=9), greedy)


@pytest.mark.parametrize(
    "settings, sentence",
    (
        ({"temperature": 0.0}, "temperature is 0: give a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ),
)
def test_settings_of_draws_are_checked(settings, sentence):
    with pytest.raises(SamplingError, match=sentence):
        Sampling(**settings)
