"""The cells and the backbone: what padding, prompts, positions and convolution may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config, models
from rmt_jax.models import recurrence
from rmt_jax.models.cells import delta as delta_cell
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.io import weights
from rmt_jax.models.layout import make_context
from rmt_jax.models.ops import block as ops
from rmt_jax.models.ops.positions import permute_positions
from rmt_jax.models.ops.triangular import unit_lower_inverse
from rmt_jax.types import Segment

FORMS = [
    {"cell": "none"},
    {"cell": "rmt"},
    {"cell": "prmt", "positions": "rotary"},
    {"cell": "armt", "positions": "alibi", "conv_width": 3},
    {"cell": "delta", "positions": "alibi", "conv_width": 3},
    {"cell": "rmt", "position_layout": "wrap_pos", "max_positions": 16},
    {"cell": "rmt", "positions": "alibi", "conv_width": 3},
]


def steps(graph, params):
    """(memory or None, tokens [B, L], mask, prompt) -> (hidden, memory), compiled."""

    def step(memory, tokens, mask, prompt=None):
        model = models.merge(graph, params)
        memory = model.initial(len(tokens)) if memory is None else memory
        return model.step(memory, Segment(tokens, mask), prompt)

    return jax.jit(step)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_padding_changes_no_bit(form):
    told = tiny.prompt()
    compiled = steps(*tiny.model(config.Prompt("question", "every", tiny.WORDS), **form))
    step = lambda *inputs: compiled(*inputs, told)  # noqa: E731
    tokens, mask = tiny.text(segments=3)
    _, memory = step(step(None, tokens[:, 0], mask[:, 0])[1], tokens[:, 1], mask[:, 1])
    hidden, after = step(memory, tokens[:, 2], mask[:, 2])

    other = np.where(mask[:, 2], tokens[:, 2], (tokens[:, 2] + 5) % tiny.VOCAB)
    hidden_other, after_other = step(memory, other, mask[:, 2])
    assert same(after, after_other)
    assert np.array_equal(hidden[0, :-3], hidden_other[0, :-3])

    _, unmoved = step(memory, other, np.zeros_like(mask[:, 2]))
    assert same(memory, unmoved)
    if form["cell"] != "none":
        assert not same(memory, after)

    half = mask[:, 2] & [[True], [False]]  # one text goes on, the other has ended
    _, mixed = step(memory, tokens[:, 2], half)
    axis = int(models.CELLS[form["cell"]].layerwise)
    states = (jax.tree.leaves(m.state) for m in (memory, mixed, after))
    for was, now, full in zip(*states, strict=True):
        was, now, full = (np.moveaxis(x, axis, 0) for x in (was, now, full))
        assert np.array_equal(now[1], was[1])
        np.testing.assert_allclose(now[0], full[0], atol=1e-5)


@pytest.mark.parametrize("form", FORMS[1:4], ids=lambda form: form["cell"])
def test_left_and_right_alignment_agree(form):
    """Positions count tokens, so the side of the padding is of no account."""
    step = steps(*tiny.model(**form))
    tokens, _ = tiny.text(segments=1)
    known = np.arange(tiny.LENGTH) < 5
    left = np.where(known, tokens[:, 0], 0)
    hidden, memory = step(None, left, np.broadcast_to(known, left.shape))
    right = np.roll(left, 3, axis=1)
    hidden_right, memory_right = step(None, right, np.broadcast_to(known[::-1], left.shape))
    np.testing.assert_allclose(hidden[:, :5], hidden_right[:, 3:], atol=1e-5)
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(memory_right), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_unrolled_layers_are_the_scanned_ones():
    tokens, mask = tiny.text(segments=1)
    results = []
    for scanned in (True, False):
        graph, params = tiny.model(cell="armt", scan_layers=scanned)
        results.append(steps(graph, params)(None, tokens[:, 0], mask[:, 0]))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_prompt_places_and_sources():
    tokens, mask = tiny.text(segments=2)
    told = tiny.prompt()
    other = told._replace(tokens=(told.tokens + 1) % tiny.VOCAB, task=1 - told.task)

    def second(source, place, prompt):
        """Hidden states of the second segment, by the prompt that stands there."""
        first, second = programs[source, place]
        memory = first(None, tokens[:, 0], mask[:, 0], told)[1]
        return second(memory, tokens[:, 1], mask[:, 1], prompt)[0]

    programs = {}
    for source, place in (("question", "every"), ("question", "start"), ("learned", "every")):
        graph, params = tiny.model(config.Prompt(source, place, tiny.WORDS))
        step = steps(graph, params)
        programs[source, place] = (step, step)
    for source in ("question", "learned"):
        assert not np.allclose(*(second(source, "every", prompt) for prompt in (told, other)))
    assert np.array_equal(*(second("question", "start", prompt) for prompt in (told, other)))
    masked = other._replace(tokens=np.where(told.mask, told.tokens, other.tokens))
    rows = [second("question", "every", prompt)[:, :4] for prompt in (told, masked)]
    assert np.array_equal(*rows)


def test_convolution_is_causal_starts_as_nothing_and_keeps_off_the_memory():
    tokens, mask = tiny.text(segments=1)
    graph, params = tiny.model(conv_width=3)
    block = params["backbone"]["blocks"]
    silent = params | {
        "backbone": params["backbone"] | {"blocks": block | {"conv": 0 * block["conv"]}}
    }
    plain = tiny.model()[0]
    without = params | {
        "backbone": params["backbone"] | {"blocks": {k: v for k, v in block.items() if k != "conv"}}
    }
    a = steps(graph, silent)(None, tokens[:, 0], mask[:, 0])[0]
    b = steps(plain, without)(None, tokens[:, 0], mask[:, 0])[0]
    np.testing.assert_allclose(a, b, atol=1e-6)

    # What a place of one layer gets from the places before it.
    block = models.merge(graph, params).backbone.blocks
    layer = jax.tree.map(lambda x: x[0], nnx.split(block)[1])
    block = nnx.merge(nnx.split(block)[0], layer)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9, 16)), jnp.float32)
    mask = jnp.ones((1, 9), bool)
    context = AttentionContext(jnp.arange(9)[None], mask, mask, None, ((2, 7),), 2, 2)
    normal = block.ln_1(x)
    share = block.normed_input(x, context)[1].normed - normal
    assert not share[:, :2].any() and not share[:, 7:].any()  # memory tokens take no part
    kernel = block.conv[...]
    np.testing.assert_allclose(share[0, 2], kernel[0] * normal[0, 2], rtol=1e-4, atol=1e-6)
    wanted = kernel[0] * normal[0, 6] + kernel[1] * normal[0, 5] + kernel[2] * normal[0, 4]
    np.testing.assert_allclose(share[0, 6], wanted, rtol=1e-4, atol=1e-6)


def test_drawn_as_gpt2_and_the_authors_do():
    big = tiny.settings(layers=4, width=64, heads=4, memory_tokens=64, segment_tokens=8,
                        max_positions=256, conv_width=4)  # fmt: skip
    built = jax.jit(
        lambda: models.split(models.build(big, config.Prompt("none"), 500, 1, nnx.Rngs(0)))[1]
    )()
    flat = {name: np.asarray(value) for name, value in weights.flatten(built).items()}
    assert np.std(flat["backbone/wte"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(flat["backbone/blocks/out/kernel"]) == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert np.std(flat["memory/tokens"]) == pytest.approx(np.std(flat["backbone/wte"]), rel=0.05)
    assert not np.any(flat["backbone/blocks/qkv/bias"])
    assert not np.any(flat["backbone/blocks/conv"])


def test_bfloat16_keeps_the_carry_in_float32():
    graph, params = tiny.model(cell="armt", dtype="bfloat16")
    tokens, mask = tiny.text(segments=1)
    hidden, memory = steps(graph, params)(None, tokens[:, 0], mask[:, 0])
    assert hidden.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(memory.state)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"segment_tokens": 40}, "= 44 positions, but the backbone has 32"),
        ({"position_layout": "wrap_pos", "segment_tokens": 31}, "= 33 positions"),
        ({"width": 18, "heads": 4}, "does not divide"),
        ({"width": 18, "heads": 6, "positions": "rotary"}, "even number"),
        ({"memory_tokens": 0}, "needs memory tokens"),
    ],
)
def test_sizes_that_cannot_be(changes, sentence):
    with pytest.raises(config.ConfigError, match=sentence):
        tiny.model(**changes)


def test_answers_depend_on_the_first_segment_through_memory_alone():
    batch = tiny.batch(segments=2)
    changed = batch._replace(
        tokens=np.concatenate([batch.tokens[:, :1] ^ 1, batch.tokens[:, 1:]], 1)
    )
    for cell in tiny.CELLS:
        graph, params = tiny.model(cell=cell)
        run = jax.jit(lambda b, g=graph, p=params: recurrence.answer_logits(models.merge(g, p), b))
        assert np.array_equal(run(batch), run(changed)) == (cell == "none")


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


def plain_norm(x, scale, bias):
    exact = x.astype(jnp.float32)
    exact = exact - exact.mean(axis=-1, keepdims=True)
    y = exact * jax.lax.rsqrt(jnp.square(exact).mean(axis=-1, keepdims=True) + 1e-5)
    return (y * scale + bias).astype(x.dtype)


ORDER = jnp.array([[2, 0, 1, 3], [3, 1, 2, 0]])
BY_HAND = {
    "product": (ops.matmul, jnp.matmul, (2, 16, 6), (6, 4)),
    "gelu": (ops.gelu, lambda x: jax.nn.gelu(x, approximate=True), (2, 16, 6)),
    "normalise": (ops.layer_norm, plain_norm, (2, 16, 6), (6,), (6,)),
    "spread": (
        lambda x: ops.broadcast_bias(x, (2, 16, 6)),
        lambda x: x + jnp.zeros((2, 16, 6)),
        (6,),
    ),
    "spread, odd": (
        lambda x: ops.broadcast_bias(x, (3, 5, 6)),
        lambda x: x + jnp.zeros((3, 5, 6)),
        (6,),
    ),
    "permuted": (
        lambda x: permute_positions(x, ORDER, jnp.argsort(ORDER, axis=1)),
        lambda x: jnp.take_along_axis(x, ORDER[:, :, None], axis=1),
        (2, 4, 6),
    ),
}


@pytest.mark.parametrize("backend", ("cpu", "gpu"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_by_hand_are_those_that_jax_makes(name, dtype, backend, monkeypatch):
    """Values to the bit, gradients to rounding, in the way of either backend."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours, plain, *shapes = BY_HAND[name]
    inputs = [jax.random.normal(jax.random.key(i), s, dtype) for i, s in enumerate(shapes)]
    if name == "normalise":  # its scale and bias are float32 whatever x is
        inputs[1:] = [x.astype(jnp.float32) for x in inputs[1:]]
    value, back = jax.vjp(ours, *inputs)
    expected, plain_back = jax.vjp(plain, *inputs)
    np.testing.assert_array_equal(value.astype(expected.dtype), expected)
    tolerance = 2e-6 if dtype == "float32" else 3e-2
    weight = jax.random.normal(jax.random.key(9), value.shape, jnp.float32)
    found = back(weight.astype(value.dtype))
    made = plain_back(weight.astype(expected.dtype))
    for x, a, b in zip(inputs, found, made, strict=True):
        assert (a.dtype, a.shape) == (x.dtype, x.shape)
        a, b = (np.asarray(g, np.float32) for g in (a, b))
        np.testing.assert_allclose(a, b, tolerance, tolerance * np.abs(b).max())


@pytest.mark.parametrize("cell", tiny.CELLS)
def test_no_two_weights_share_an_array(cell):
    """A train step may be given them to use up (`donate_argnums`), each once."""
    built = models.build(
        tiny.settings(cell=cell), config.Prompt("none"), tiny.VOCAB, 1, nnx.Rngs(0)
    )
    arrays = weights.flatten(models.split(built)[1]).values()
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays)
