"""The delta memory: the rule token by token, gates that close, what is only read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config, models
from rmt_jax.models import recurrence
from rmt_jax.models.cells import delta as delta_cell
from rmt_jax.models.layout import make_context
from rmt_jax.models.ops.triangular import unit_lower_inverse
from rmt_jax.types import Segment


def delta(bias=0.0, tokens=delta_cell.CHUNK + 12):
    """A delta model, one layer's slice of its cell, and what attention would see of two texts of a
    prompt of 3 places and `tokens` tokens, more than one chunk: x [2, 3 + tokens, D]."""
    graph, params = tiny.model(cell="delta")
    params["memory"]["layers"]["beta_bias"] += bias
    model = models.merge(graph, params)
    x = np.random.default_rng(2).standard_normal((2, 3 + tokens, 16)).astype(np.float32)
    mask = jnp.ones((2, 3 + tokens), bool)
    context = make_context(model.backbone, mask, ((0, 3), (3, 3 + tokens)), 0, 0)
    return model, model.layer_at(0, model.initial(2))[1].weights, jnp.asarray(x), context


def matrices(model, seed=3):
    shape = (2, model.memory.keys, 16)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_delta_reads_and_writes_token_by_token():
    model, maps, x, context = delta(bias=1.0)
    assert x.shape[1] - 3 > delta_cell.CHUNK
    kernel = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), nnx.to_pure_dict(
        nnx.split(model.memory.layers)[1]))  # fmt: skip
    known = np.asarray(matrices(model), np.float64)
    found, matrix = delta_cell.delta_rule(maps, x, matrices(model), context)
    for b, text in enumerate(np.asarray(x, np.float64)):
        for n, token in enumerate(text):
            query, key = token @ kernel["query"], token @ kernel["key"]
            read = query / np.linalg.norm(query) @ known[b]
            np.testing.assert_allclose(found[b, n], read, rtol=1e-4, atol=1e-4)
            if n < 3:
                continue  # the prompt writes nothing
            key /= np.linalg.norm(key)
            sigmoid = 1 / (1 + np.exp(-(token @ kernel["beta"] + kernel["beta_bias"])))
            strength = np.clip(1.2 * sigmoid - 0.1, 0, 1)
            known[b] += np.outer(key, strength * (token @ kernel["value"] - key @ known[b]))
    np.testing.assert_allclose(matrix, known, rtol=1e-4, atol=1e-4)


def test_an_open_delta_gate_replaces_and_a_closed_one_leaves_every_bit():
    model, maps, x, context = delta(bias=20.0)
    old = matrices(model)
    new = delta_cell.delta_rule(maps, x, old, context)[1]
    # What was written last is read back exactly, whatever was there before.
    key = delta_cell._unit(x[:, -1] @ maps.key[...])
    found = jnp.einsum("bk,bkd->bd", key, new)
    np.testing.assert_allclose(found, x[:, -1] @ maps.value[...], rtol=1e-4, atol=1e-4)
    # However often the same text is read, the memory does not grow.
    read = jax.jit(lambda matrix: delta_cell.delta_rule(maps, x, matrix, context)[1])
    for _ in range(50):
        new = read(new)
    assert jnp.abs(new).max() < 4 * jnp.abs(old).max()

    closed = delta(bias=-20.0)[0]
    tokens, mask = tiny.text()
    memory = closed.initial(2)._replace(state=jax.tree.map(
        lambda a: jnp.asarray(np.random.default_rng(4).standard_normal(a.shape), a.dtype),
        closed.initial(2).state))  # fmt: skip
    after = closed.update_memory(memory, Segment(tokens[:, 0], mask[:, 0]))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after.state, memory.state))
    assert after.started.all()


@pytest.mark.parametrize("size", (1, 5, 8, 19, 33, 64, 96, 128))
def test_the_triangular_system_is_inverted(size):
    rng = np.random.default_rng(size)
    keys = rng.standard_normal((2, size, 64))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    for lower in (keys @ keys.swapaxes(1, 2), np.ones((2, size, size))):
        lower = np.tril(lower, -1)  # all ones: one key written again and again
        found = unit_lower_inverse(jnp.asarray(lower, jnp.float32))
        wanted = np.linalg.inv(lower + np.eye(size))
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_chunks_of_any_size_read_and_write_the_same(monkeypatch):
    model, maps, x, context = delta(bias=1.0)

    def both(x, matrix):
        found, new = delta_cell.delta_rule(maps, x, matrix, context)
        return (found**2).sum() + (new**2).sum(), (found, new)

    both = jax.value_and_grad(both, (0, 1), has_aux=True)
    wide = both(x, matrices(model))
    monkeypatch.setattr(delta_cell, "CHUNK", 32)
    narrow = both(x, matrices(model))
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("bias", (1.0, -20.0))
def test_a_text_that_is_only_read_leaves_the_same_memory(bias):
    """Closed gates are passed by in a branch of their own, on a CPU."""
    graph, params = tiny.model(cell="delta")
    params["memory"]["layers"]["beta_bias"] += bias
    tokens, mask = tiny.text(segments=5)

    def only_read(params):
        model = models.merge(graph, params)
        return recurrence.read_some(model, model.initial(2), tokens, mask, None, jnp.int32(5))

    def kept(params):
        model = models.merge(graph, params)
        return recurrence.read(model, model.initial(2), tokens, mask)

    found, wanted = (jax.jit(read)(params).state.matrix for read in (only_read, kept))
    assert [" cond[" in str(jax.make_jaxpr(read)(params)) for read in (only_read, kept)] == [1, 0]
    assert np.array_equal(found, wanted)
    assert bool(jnp.any(found != 0)) == (bias > 0)


def test_a_word_is_found_under_itself_before_delta_has_learned_anything():
    settings, prompt = tiny.settings(cell="delta"), config.Prompt("none")
    maps = models.build(settings, prompt, tiny.VOCAB, 2, nnx.Rngs(0)).memory.layers
    assert np.array_equal(maps.query[...], maps.key[...])
    assert (delta_cell.gate(maps.beta_bias[...]) < 0.2).all()


def test_a_closed_gate_can_learn_to_open():
    x = jnp.array([-4.0, 0.0, 4.0])
    value, slope = jax.vmap(jax.value_and_grad(delta_cell.gate))(x)
    np.testing.assert_allclose(value, [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(slope, 1.2 * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), rtol=1e-5)
    assert (slope > 0.02).all()
    value, same = jax.vmap(jax.value_and_grad(lambda x: delta_cell.gate(x, 0.51)))(x)
    np.testing.assert_allclose(value, [0, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(same, slope)


def test_a_threshold_keeps_half_open_gates_shut():
    """With every gate below it a delta memory is never written; one above writes as before."""
    (tokens, mask), found = tiny.text(), {}
    for threshold in (0.0, 0.1, 0.99, (0.99, 0.0)):
        given = threshold if isinstance(threshold, tuple) else (threshold,)
        settings = tiny.settings(cell="delta", gate_threshold=given)
        built = models.build(settings, config.Prompt("none"), tiny.VOCAB, 2, nnx.Rngs(0))
        built.memory.layers.value[...] += 0.1
        built.memory.layers.beta_bias[...] += 1.5  # about half open
        memory = built.update_memory(built.initial(2), Segment(tokens[:, 0], mask[:, 0]))
        found[threshold] = np.asarray(memory.state.matrix)
    np.testing.assert_array_equal(found[0.0], found[0.1])
    assert not found[0.99].any() and found[0.0].any()
    first, second = found[0.99, 0.0]
    assert not first.any() and second.any()
