"""The fast model is held to the plain one of `models.reference`: values, memory and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rmt_jax import config, models
from rmt_jax.models import recurrence, reference
from rmt_jax.models.io import weights

PROMPT = config.Prompt("question", "every", tiny.WORDS)


def plain(params, tokens, mask, prompt):
    heads = tiny.settings().heads
    return reference.read_text(params, heads, tokens, mask, prompt.tokens, prompt.mask)


@pytest.mark.parametrize("scanned", (True, False))
def test_logits_and_memory_are_those_of_the_reference(scanned):
    graph, params = tiny.model(PROMPT, cell="rmt", scan_layers=scanned)
    tokens, mask = tiny.text(batch=3, segments=3)
    mask[1, 2] = False  # a text that ends a segment earlier
    prompt = tiny.prompt(3)
    wanted, memory = jax.jit(plain)(params, tokens, mask, prompt)

    def run(params):
        model = models.merge(graph, params)
        return recurrence.all_logits(model, model.initial(3), tokens, mask, prompt)

    found, after = jax.jit(run)(params)
    np.testing.assert_allclose(found[mask], wanted[mask], rtol=0, atol=2e-5)
    np.testing.assert_allclose(after.state, memory, rtol=0, atol=2e-5)


@pytest.mark.parametrize("remat", (True, pytest.param(False, marks=pytest.mark.slow)))
def test_gradients_are_those_of_the_reference(remat):
    """Of a loss at the answers, through all segments and every weight."""
    graph, params = tiny.model(PROMPT, cell="rmt")
    batch = tiny.batch(segments=3)
    prompt = tiny.prompt()

    def loss(logits, target):  # [B, T, V], [B, T]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
        return -chosen.sum()

    target = jnp.asarray(batch.answer[:, 0, 0])

    def fast(params):
        logits = recurrence.answer_logits(models.merge(graph, params), batch, remat=remat)
        return loss(logits[:, 0, 0], target)

    def slow(params):
        logits, _ = plain(params, batch.tokens, batch.mask, prompt)
        start = batch.answer_start[0, 0, 0]  # the same in every row of a tiny batch
        return loss(logits[:, -1, start : start + 2], target)

    assert (batch.answer_start == batch.answer_start[0, 0, 0]).all()
    value, gradient = jax.jit(jax.value_and_grad(fast))(params)
    wanted, expected = jax.jit(jax.value_and_grad(slow))(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    found, expected = weights.flatten(gradient), weights.flatten(expected)
    for name in expected:
        largest = float(jnp.abs(expected[name]).max())
        assert largest > 0, name
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-4, atol=1e-5 * largest, err_msg=name
        )
