"""The cells and the backbone: what padding, prompts, positions and convolution may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config, models
from rmt_jax.models import recurrence
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.io import weights
from rmt_jax.models.ops import block as ops
from rmt_jax.models.ops.positions import permute_positions
from rmt_jax.types import Segment

FORMS = [
    {"cell": "none"},
    {"cell": "rmt"},
    {"cell": "prmt", "positions": "rotary"},
    {"cell": "armt", "positions": "alibi", "conv_width": 3},
    {"cell": "delta", "positions": "alibi", "conv_width": 3},
    {"cell": "kv", "positions": "alibi", "conv_width": 3},
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
