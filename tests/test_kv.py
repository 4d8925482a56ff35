"""The memory that keeps what attention looks up: against attention over the whole text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.config import ConfigError
from rmt_jax.models import recurrence, reference
from rmt_jax.models.cells.kv import KeptTokens
from rmt_jax.types import Segment

ASKED = cfg.Prompt("description", "every", tiny.WORDS)
SEGMENTS = 4
LLAMA = {"kv_heads": 1, "head_width": 8, "mlp_width": 24}


def built(gates=None, slots=SEGMENTS * tiny.LENGTH, **changes):
    """A model and its params; `gates` draws the gates' weights, without it they stand open."""
    options = {"cell_options": {"slots": slots}} if changes.get("cell", "kv") == "kv" else {}
    values = {"cell": "kv", "positions": "rotary", "max_positions": 128} | options
    settings = tiny.settings(**(values | changes))
    made = models.build(settings, ASKED, tiny.VOCAB, 2, nnx.Rngs(0))
    graph, params = models.split(made)
    rng = np.random.default_rng(0)
    params["backbone"] = jax.tree.map(
        lambda x: np.asarray(x) + (0.1 * rng.standard_normal(x.shape)).astype(np.float32),
        params["backbone"],
    )
    if gates is not None:
        drawn = np.random.default_rng(gates).standard_normal(settings.width)
        params["memory"] = {"beta": 2 * drawn.astype(np.float32), "beta_bias": np.float32(-1)}
    return graph, params


def read(graph, params, tokens, mask):
    """Logits of every token [B, S · L, V] and the memory after them."""
    model = models.merge(graph, params)
    logits, memory = recurrence.all_logits(
        model, model.initial(len(tokens)), tokens, mask, tiny.prompt()
    )
    return logits.reshape(len(tokens), -1, logits.shape[-1]), memory


FORMS = (
    {"positions": "rotary"},
    {"positions": "alibi"},
    {"positions": "learned", "scan_layers": False},
    {"backbone": "llama", "backbone_options": LLAMA},
    {
        "backbone": "gemma3",
        "backbone_options": LLAMA | {"global_layers": (1,), "query_scalar": 6, "window": 64},
    },
    {"backbone": "neox", "backbone_options": {"mlp_width": 24, "rotary_width": 4}},
)


@pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: form.get("backbone") or form.get("positions")
)
def test_a_text_in_segments_gives_what_one_long_segment_gives(form):
    """Values and the gradients of all weights, while gates stand open and there is room."""
    tokens, mask = tiny.text(segments=SEGMENTS)
    graph, params = built(**form)
    whole_graph, whole = built(cell="none", segment_tokens=SEGMENTS * tiny.LENGTH, **form)
    whole["backbone"] = params["backbone"]
    weigh = np.random.default_rng(1).standard_normal(tiny.VOCAB).astype(np.float32)

    def loss(backbone, graph, params, tokens, mask):
        logits, _ = read(graph, params | {"backbone": backbone}, tokens, mask)
        return (logits @ weigh * mask.reshape(len(mask), -1)).sum(), logits

    one = (tokens.reshape(2, 1, -1), mask.reshape(2, 1, -1))
    each = jax.value_and_grad(loss, has_aux=True)
    (_, found), slope = each(params["backbone"], graph, params, tokens, mask)
    (_, wanted), right = each(params["backbone"], whole_graph, whole, *one)
    real = mask.reshape(2, -1)
    np.testing.assert_allclose(found[real], wanted[real], atol=5e-6)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def plain_reading(params, prompt, segments, heads, layer, slots, threshold=0.0):
    """Logits of every segment of one text: a loop without padding, arrays of any length and no
    weights but GPT-2's and the gate's. prompt, segments: token ids."""
    backbone, gate = params["backbone"], params["memory"]
    layers = len(backbone["blocks"]["qkv"]["bias"])
    kept, kept_gates, logits = [np.zeros((0, tiny.settings().width))] * layers, np.zeros(0), []
    for ids in segments:
        count = len(kept_gates)
        at = np.concatenate([np.arange(len(prompt)), len(prompt) + count + np.arange(len(ids))])
        x = backbone["wte"][np.concatenate([prompt, ids])] + backbone["wpe"][at]
        seen = []
        for number in range(layers):
            weights = jax.tree.map(lambda a, n=number: a[n], backbone["blocks"])
            normed = reference.layer_norm(x, weights["ln_1"])
            front, text = np.split(normed, [len(prompt)])
            seen.append(np.asarray(text))
            looked_up = np.concatenate([front, kept[number], text])
            queries = np.split(reference.linear(normed, weights["qkv"]), 3, axis=-1)[0]
            keys, values = np.split(reference.linear(looked_up, weights["qkv"]), 3, axis=-1)[1:]
            mixed = []
            for q, k, v in zip(
                *(np.split(a, heads, axis=-1) for a in (queries, keys, values)), strict=True
            ):
                scores = q @ k.T / k.shape[-1] ** 0.5
                place = np.concatenate(
                    [np.arange(len(prompt)), np.full(count, len(prompt) - 0.5),
                     len(prompt) + np.arange(len(ids))]
                )  # fmt: skip
                own = np.concatenate([np.arange(len(prompt)), len(prompt) + np.arange(len(ids))])
                scores = np.where(place[None] <= own[:, None], scores, -np.inf)
                mixed.append(jax.nn.softmax(scores, axis=-1) @ v)
            x = x + reference.linear(np.concatenate(mixed, axis=-1), weights["out"])
            inner = reference.linear(reference.layer_norm(x, weights["ln_2"]), weights["up"])
            x = x + reference.linear(jax.nn.gelu(inner, approximate=True), weights["down"])
        hidden = reference.layer_norm(x, backbone["ln_f"])[len(prompt) :]
        logits.append(hidden @ backbone["wte"].T)
        given = seen[layer] @ gate["beta"] + gate["beta_bias"]
        opened = np.clip(1.2 / (1 + np.exp(-given)) - 0.1, 0, 1)
        opened = np.where(opened < threshold, 0, opened)
        gates = np.concatenate([kept_gates, opened])
        order = sorted(range(len(gates)), key=lambda i: (gates[i], i))[-slots:]
        stay = sorted(i for i in order if gates[i] > 0)
        kept = [np.concatenate(pair)[stay] for pair in zip(kept, seen, strict=True)]
        kept_gates = gates[stay]
    return logits, kept, kept_gates


@pytest.mark.parametrize(("slots", "threshold"), ((40, 0.0), (9, 0.0), (40, 0.6)))
def test_what_is_kept_and_read_is_what_a_plain_loop_keeps_and_reads(slots, threshold):
    """With room for all whose gates open, with less, and with gates that must open far."""
    form = dict(positions="learned", gate_threshold=(threshold,) if threshold else ())
    graph, params = built(gates=1, slots=slots, **form)
    tokens, mask = tiny.text(segments=SEGMENTS)
    found, memory = read(graph, params, tokens, mask)
    prompt, counts = tiny.prompt(), []
    for text in range(len(tokens)):
        segments = [ids[real] for ids, real in zip(tokens[text], mask[text], strict=True)]
        logits, kept, gates = plain_reading(
            params, prompt.tokens[text][prompt.mask[text]], segments, 2, 1, slots, threshold
        )
        real = mask[text].reshape(-1)
        np.testing.assert_allclose(found[text][real], np.concatenate(logits), atol=2e-5)
        held = np.asarray(memory.state.gates[0, text])
        np.testing.assert_allclose(held[held > 0], gates, atol=1e-5)
        for ours, theirs in zip(memory.state.normed[:, text], kept, strict=True):
            np.testing.assert_allclose(ours[held > 0], theirs, atol=2e-5)
            assert not np.asarray(ours)[held == 0].any()
        counts.append(len(gates))
    total = int(mask.sum()) / 2
    assert counts == [slots] * 2 if slots < 20 else 3 < min(counts) <= max(counts) < total - 3


def test_what_opens_least_goes_first_and_of_equals_the_oldest():
    graph, params = built(slots=3)
    cell = models.merge(graph, params).memory
    gates = jnp.array([[0.5, 0.0, 0.9, 1.0, 1.0, 0.0]])  # held; then the text, open but for padding
    places = jnp.arange(6.0)[None, :, None] + jnp.zeros((2, 1, 6, tiny.settings().width))
    state = KeptTokens(places + 1, jnp.broadcast_to(gates, (2, 1, 6)))
    after = cell.next_state(state, places, 0, None)
    np.testing.assert_allclose(after.gates[:, 0], np.broadcast_to([0.9, 1.0, 1.0], (2, 3)))
    assert np.array_equal(after.normed[:, 0, :, 0], np.broadcast_to([3.0, 4.0, 5.0], (2, 3)))
    full = KeptTokens(after.normed, after.gates)
    for _ in range(2):  # a text of two whose gates are as open as the held ones'
        news = jnp.concatenate([full.normed, full.normed[:, :, :2] + 10], axis=2)
        open_gates = jnp.concatenate([full.gates, jnp.ones((2, 1, 2))], axis=2)
        full = cell.next_state(KeptTokens(news, open_gates), places, 0, None)
    assert np.array_equal(full.normed[0, 0, :, 0], [14.0, 15.0, 23.0])


def test_empty_slots_between_kept_tokens_change_nothing():
    """Kept tokens stand close together, wherever their slots are."""
    graph, params = built(slots=6)
    model = models.merge(graph, params)
    rng = np.random.default_rng(2)
    normed = rng.standard_normal((2, 1, 4, tiny.settings().width)).astype(np.float32)

    def hidden(slots):
        state = model.memory.initial_state(1)
        held = jnp.asarray(slots)
        state = KeptTokens(
            state.normed.at[:, :, held].set(normed), state.gates.at[:, :, held].set(1)
        )
        memory = model.initial(1)._replace(state=state)
        segment = Segment(np.arange(5)[None], np.ones((1, 5), bool))
        prompt = jax.tree.map(lambda part: part[:1], tiny.prompt())
        return model.step(memory, segment, prompt)[0]

    np.testing.assert_allclose(hidden([0, 1, 2, 3]), hidden([0, 2, 3, 5]), atol=1e-5)


def test_answers_teach_the_gate():
    """A gate half open keeps a token whole, and has the slope of what counts less."""
    graph, params = built(gates=1)
    params["memory"]["beta"] *= 0.01  # half open, every one
    batch = tiny.batch(segments=3)

    def loss(memory):
        model = models.merge(graph, params | {"memory": memory})
        return jnp.square(recurrence.answer_logits(model, batch)).mean()

    opened = params["memory"] | {"beta_bias": np.float32(9), "beta": params["memory"]["beta"] * 0}
    half, slope = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, params["memory"]))
    np.testing.assert_allclose(half, loss(opened), rtol=1e-6)
    assert np.abs(slope["beta"]).max() > 1e-6 and abs(slope["beta_bias"]) > 1e-7


def test_wrong_settings_say_the_way_out():
    for changes, words in (
        ({"gate_threshold": (0.1, 0.2)}, "one gate for all layers"),
        ({"cell_options": {"gate_layer": 3}}, "gate_layer is 3, but there are 2 layers"),
        ({"cell_options": {"slots": 0}}, "slots"),
        ({"schedule": "diagonal"}, "chosen in one of them"),
        ({"positions": "learned", "max_positions": 32}, "32 kept .* 43 positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            models.check(
                tiny.settings(**({"cell": "kv", "cell_options": {"slots": 32}} | changes)), ASKED
            )
