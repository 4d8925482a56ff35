"""Log-probabilities of given texts: against all logits, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rmt_jax import config, models
from rmt_jax.models import likelihood, recurrence

ASKED = config.Prompt("question", "every", tiny.WORDS)


def built(**changes):
    graph, params = tiny.model(ASKED, positions="alibi", **changes)
    return models.merge(graph, params)


def holes():
    """Tokens and a mask with padding at either side, in the middle, and a whole empty segment."""
    tokens, mask = tiny.text(batch=3, segments=5)
    mask[0, 0, :2] = mask[0, 2, 3:5] = mask[1, 1] = mask[1, 3, -1:] = False
    mask[2, :2] = False
    return tokens, mask


def by_hand(logits, tokens, mask):
    """For one text after another, one real token after another."""
    scores = np.asarray(jax.nn.log_softmax(logits))
    out, best = np.zeros(tokens.shape, np.float32), np.ones(tokens.shape, bool)
    for b in range(len(tokens)):
        places = np.argwhere(mask[b])
        for before, here in zip(places, places[1:], strict=False):
            row, token = scores[(b, *before)], tokens[(b, *here)]
            out[(b, *here)], best[(b, *here)] = row[token], row.argmax() == token
    return out, best


@pytest.mark.parametrize("cell", tiny.CELLS)
def test_each_token_given_those_before_it(cell):
    model, prompt = built(cell=cell), tiny.prompt(3)
    tokens, mask = holes()
    logits, memory = recurrence.all_logits(model, model.initial(3), tokens, mask, prompt)
    wanted, likeliest = by_hand(logits, tokens, mask)
    found, after = jax.jit(likelihood.token_logprobs)(model, model.initial(3), tokens, mask, prompt)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert (wanted < 0).sum() == mask.sum() - 3
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(memory), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    scores, _ = likelihood.read_scores(
        model, likelihood.begin(model, model.initial(3)), tokens, mask, prompt
    )
    assert np.array_equal(scores.likeliest, likeliest)


def test_a_text_in_pieces_is_the_text(monkeypatch):
    """Also with logits of three places at a time, which do not divide a segment."""
    model = built(cell="rmt")
    tokens, mask = holes()
    whole, memory = likelihood.token_logprobs(model, model.initial(3), tokens, mask)
    monkeypatch.setattr(likelihood, "CHUNK", 3 * 3 * tiny.VOCAB)
    reading, parts = likelihood.begin(model, model.initial(3)), []
    for start, stop in ((0, 1), (1, 3), (3, 5)):
        some = (tokens[:, start:stop], mask[:, start:stop])
        scores, reading = likelihood.read_scores(model, reading, *some)
        parts.append(scores.logprob)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, rtol=0, atol=1e-6)
    for a, b in zip(jax.tree.leaves(reading.memory), jax.tree.leaves(memory), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_all_logits_are_never_held(monkeypatch):
    """With a chunk of one place, no array of the program is as large as a segment's logits."""
    model = built(cell="none")
    tokens, mask = tiny.text(batch=2, segments=2)
    monkeypatch.setattr(likelihood, "CHUNK", 1)
    text = str(jax.make_jaxpr(likelihood.token_logprobs)(model, model.initial(2), tokens, mask))
    assert f"f32[2,1,{tiny.VOCAB}]" in text
    assert f"f32[2,{tiny.LENGTH},{tiny.VOCAB}]" not in text
