"""The Llama family under every memory cell; test_llama_torch.py compares it with PyTorch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.api import Model
from rmt_jax.models import costs, diagonal, recurrence
from rmt_jax.models.backbones.llama import Llama
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import hub, names, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.rotary import RopeOptions, rotary_angles, rotate
from rmt_jax.runtime import mesh
from rmt_jax.training import optimizer
from rmt_jax.training import step as steps
from rmt_jax.types import Segment

ASKED = cfg.Prompt("description", "every", tiny.WORDS)
UNTYPED = {"model_type": None}  # without it transformers' class does not look at a config.json
OPTIONS = {"kv_heads": 1, "mlp_width": 24, "head_width": 6, "qk_norm": True}


def settings(**changes) -> cfg.Model:
    values = dict(backbone="llama", heads=2, backbone_options=OPTIONS)
    return tiny.settings(**(values | changes))


def built(seed=0, prompt=ASKED, **changes):
    """Static part and params of a freshly drawn model."""
    model = models.build(settings(**changes), prompt, tiny.VOCAB, 2, nnx.Rngs(seed))
    return models.split(model)


def drawn(**changes):
    """The same with every weight drawn, so that nothing hides behind a zero."""
    graph, params = built(**changes)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda value: (0.1 * rng.standard_normal(value.shape)).astype(np.float32), params
    )
    return graph, jax.tree.map(lambda value, more: np.asarray(value) + more, params, noise)


def read(graph, params, tokens, mask):
    """Logits and memory."""

    def run(params):
        model = models.merge(graph, params)
        memory = model.initial(len(tokens))
        return recurrence.all_logits(model, memory, tokens, mask, tiny.prompt(len(tokens)))

    return jax.jit(run)(params)


@pytest.mark.parametrize("cell", tiny.cells("rmt", "delta"))
def test_a_train_step_moves_every_weight(cell):
    config = cfg.Config(
        model=settings(cell=cell),
        prompt=ASKED,
        stages=(cfg.Stage(3, 10, 2, 1e-2),),
        optimizer=cfg.Optimizer(warmup=0.0),
    )
    graph, params = drawn(cell=cell)
    infos = models.outline(config.model, ASKED, tiny.VOCAB, 2).weights
    opt = optimizer.build(config, infos)
    step = jax.jit(steps.make_train_step(graph, opt, 2, bptt=0, remat=True))
    state = steps.init_state(jax.tree.map(jnp.asarray, params), opt)
    state, sums = step(state, tiny.batch(segments=3))
    assert np.isfinite(sums.loss).all()
    before, after = weights.flatten(params), weights.flatten(state.params)
    assert not [name for name in before if np.array_equal(before[name], after[name])]
    assert infos.keys() == before.keys()


@pytest.mark.parametrize("cell", ("armt", "delta"))
def test_associative_memories_start_as_exactly_the_base_model(cell):
    """Their values begin at zero, so each segment is read as the bare backbone reads it."""
    plain_graph, plain = built(cell="none")
    graph, params = built(cell=cell)
    params["backbone"] = plain["backbone"]
    tokens, mask = tiny.text()
    logits, memory = read(graph, params, tokens, mask)
    wanted, _ = read(plain_graph, plain, tokens, mask)
    np.testing.assert_allclose(logits[mask], wanted[mask], rtol=0, atol=1e-6)
    assert not np.asarray(memory.state.matrix).any()


@pytest.mark.parametrize("cell", tiny.CELLS)
def test_padding_changes_no_bit(cell):
    graph, params = drawn(cell=cell)
    tokens, mask = tiny.text()
    mask[1, 2] = False  # a whole segment
    other = np.where(mask, tokens, (tokens + 1) % tiny.VOCAB)
    (logits, memory), (same, equal) = (read(graph, params, t, mask) for t in (tokens, other))
    assert np.array_equal(logits[mask], same[mask])
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(equal), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("cell", ("rmt", "armt", "delta"))
def test_a_loop_over_layers_equals_unrolled_layers(cell):
    _, params = drawn(cell=cell)
    tokens, mask = tiny.text()
    (logits, memory), (same, equal) = (
        read(built(cell=cell, scan_layers=scan)[0], params, tokens, mask) for scan in (True, False)
    )
    np.testing.assert_allclose(logits[mask], same[mask], atol=1e-5)
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(equal), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def answers_of(graph, params, batch, by=recurrence):
    """Answer logits and the gradient of their squares."""

    def loss(params):
        logits = by.answer_logits(models.merge(graph, params), batch)
        return jnp.square(logits).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, gradient


@pytest.mark.parametrize("cell", tiny.cells("armt", of=("armt", "delta")))
def test_the_diagonal_schedule_is_the_sequential_one(cell):
    graph, params = drawn(cell=cell)
    both = (answers_of(graph, params, tiny.batch(), by) for by in (recurrence, diagonal))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", tiny.cells("rmt", of=("rmt", "armt")))
def test_packed_padding_gives_the_same(cell, monkeypatch):
    """As on a GPU, where cuDNN's kernel has grouped heads and needs no mask (XLA's form here)."""
    graph, params = drawn(cell=cell, scan_layers=False)
    batch = tiny.batch(segments=2)
    mask = batch.mask.copy()
    mask[0, 0, 3:], mask[1, 1, 5:] = False, False
    batch = batch._replace(mask=mask)
    plain, seen, causal = answers_of(graph, params, batch), [], attention.causal

    def fused(queries, keys, values, known, _):
        seen.append((known is None, queries.shape[2], keys.shape[2]))
        return causal(queries, keys, values, known, "xla")

    monkeypatch.setattr(attention, "available", lambda *_, **__: "cudnn")
    monkeypatch.setattr(attention, "causal", fused)
    for a, b in zip(*map(jax.tree.leaves, (plain, answers_of(graph, params, batch))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert set(seen) == {(True, 2, 1)}


@pytest.mark.parametrize("cell", ("rmt", "delta", "kv"))
def test_decoding_with_a_cache_is_reading_all_again(cell):
    config = cfg.Config(model=settings(cell=cell), prompt=cfg.Prompt("none"))
    model = Model(config, drawn(cell=cell, prompt=config.prompt)[1])
    tokens = np.random.default_rng(3).integers(0, tiny.VOCAB, (2, tiny.LENGTH + 8))
    count = tiny.LENGTH + 3
    found = model.generate(tokens[:, :count], max_new_tokens=4)
    for new in found.T:
        mask = np.broadcast_to(np.arange(tokens.shape[1]) < count, tokens.shape)
        logits, _ = model.forward(tokens, mask)
        assert np.array_equal(np.argmax(logits[:, count - 1], axis=-1), new)
        tokens[:, count], count = new, count + 1


def test_grouped_heads_are_repeated_keys():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    keys, values = rng.standard_normal((2, 2, 5, 2, 4)).astype(np.float32)
    visible = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
    repeated = (np.repeat(x, 3, axis=2) for x in (keys, values))
    wanted = attention.plain(queries, *repeated, visible)
    np.testing.assert_allclose(attention.plain(queries, keys, values, visible), wanted, atol=1e-6)
    seen = attention.attention_weights(queries, keys, visible)
    mixed = np.einsum("bhnk,bkhd->bnhd", seen, np.repeat(values, 3, axis=2))
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)


def test_rotated_products_depend_on_distance_alone():
    x = np.random.default_rng(0).standard_normal((1, 2, 1, 8)).astype(np.float32)
    turning = RopeOptions(rope_base=100.0).frequencies(8)

    def product(first, second):
        turned = rotate(jnp.asarray(x), rotary_angles(jnp.array([[first, second]]), turning))
        return (turned[0, 0] * turned[0, 1]).sum()

    np.testing.assert_allclose(product(3, 7), product(20, 24), rtol=1e-4)
    assert abs(product(3, 7) - product(3, 8)) > 1e-2


def test_weights_say_axes_that_a_mesh_can_split():
    options = {"qkv_bias": True, "kv_heads": 2}
    changes = dict(heads=4, backbone_options=options, tied_head=False)
    made = models.outline(settings(**changes), ASKED, tiny.VOCAB, 2)
    plan, split = mesh.planned((1, 2, 2)), set()
    for name, value in weights.flatten(made.shapes).items():
        if mesh.weight_spec(name, value.shape, made.weights[name], plan) != mesh.P(
            *[None] * value.ndim
        ):
            split.add(name.rpartition("/")[0])
    assert {f"backbone/blocks/{n}" for n in ("query", "key", "out", "gate", "down")} <= split


def test_flops_of_a_layer_are_the_compilers():
    config = settings(
        cell="none", width=128, heads=4, segment_tokens=64,
        backbone_options={"kv_heads": 2, "mlp_width": 320},
    )  # fmt: skip
    prompt = cfg.Prompt("none")
    model = models.build(config, prompt, tiny.VOCAB, 1, nnx.Rngs(0))
    segment = Segment(jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool))
    x, context = model.enter(model.initial(1), segment, None)

    def layer(params, x):
        return model.run_layer(params, x, (), model.initial(1).started, context)[0]

    params = jax.tree.map(lambda value: value[0], model.stacked_params())
    counted = jax.jit(layer).lower(params, x).compile().cost_analysis()
    ours = costs.segment_flops(cfg.Config(model=config, prompt=prompt)) / config.layers
    assert ours == pytest.approx(counted["flops"], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"positions": "alibi"}, "model.positions=alibi: set that to rotary or learned"),
        ({"conv_width": 3}, "model.conv_width=3: set that to 0"),
        ({"position_layout": "wrap_pos"}, "model.position_layout=wrap_pos: set that to plain"),
        ({"heads": 3, "backbone_options": {}}, "width 16 does not divide into model.heads 3"),
        ({"backbone_options": {"kv_heads": 3}}, "kv_heads 3 does not divide model.heads 2"),
        ({"backbone_options": {"head_width": 5}}, "a head has 5 columns"),
        ({"backbone_options": {"rope_low_turns": 4}}, "must be below rope_high_turns"),
        ({"backbone_options": {"qkv_bias": True, "qk_norm": True}}, "in no model together"),
        ({"backbone_options": {"rope_scaling": "yarn"}}, "must be one of none, llama3"),
        ({"backbone_options": {"kv_head": 1}}, "Did you mean model.backbone_options.kv_heads"),
        ({"backbone_options": {"window": 9}}, "= 12 positions, but the backbone has 9: lower"),
    ],
)
def test_settings_that_cannot_be(changes, sentence):
    with pytest.raises(cfg.ConfigError, match=sentence):
        models.check(settings(**changes), cfg.Prompt("none"))


def folder(path, said, flat=None):
    """A Hugging Face folder of a drawn model, whose config.json says `said` besides its own."""
    config = settings(cell="none", backbone_options={"kv_heads": 1, "mlp_width": 24})
    if flat is None:
        _, params = built(cell="none", prompt=cfg.Prompt("none"), backbone_options=dict(
            config.backbone_options))  # fmt: skip
        flat = {n: np.asarray(v) for n, v in weights.flatten(params).items()}
    theirs = names.to_theirs(flat, Llama, CELLS["none"])
    theirs = {n: np.ascontiguousarray(v) for n, v in theirs.items()}
    path.mkdir()
    weights.write(path / "model.safetensors", theirs, {})
    own = Llama.to_hf_config(config, hub.part_of(flat, "backbone"))
    (path / "config.json").write_text(json.dumps(own | said))
    return path, flat


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"hidden_act": "gelu"}, "says hidden_act = 'gelu', but only 'silu'"),
        ({"attention_bias": True}, "says attention_bias = True"),
        ({"mlp_bias": True}, "says mlp_bias = True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "says rope_type = 'yarn'"),
        ({"rope_parameters": {"type": "linear", "factor": 4.0}}, "says rope_type = 'linear'"),
        (UNTYPED | {"rope_parameters": {"rope_type": "llama3"}}, "without factor, low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "says partial_rotary_factor = 0.5"),
        ({"num_attention_heads": 3}, "config.json can't be a llama: "),
        (UNTYPED | {"num_attention_heads": 3}, "num_attention_heads = 3: put the model's own"),
        (UNTYPED | {"num_attention_heads": None}, "= None: put the model's own"),
        ({"model_type": "gemma2"}, "model_type = 'gemma2', but only"),
    ],
)
def test_variants_that_it_does_not_compute(tmp_path, said, sentence):
    path, _ = folder(tmp_path / "model", said)
    with pytest.raises(WeightsError, match=sentence):
        hub.open_source(path)


def test_a_bias_of_another_variant_is_named(tmp_path):
    _, flat = folder(tmp_path / "good", {})
    more = flat | {"backbone/blocks/out/bias": np.zeros((2, 16), np.float32)}
    opened = hub.open_source(folder(tmp_path / "model", {}, more)[0])
    with pytest.raises(WeightsError, match="Left over: backbone/blocks/out/bias"):
        hub.fit(opened.config, opened.params, "model")


def test_the_window_bounds_the_segment(tmp_path):
    windowed = {"model_type": "mistral", "sliding_window": 10}
    path, _ = folder(tmp_path / "model", windowed)
    config = hub.open_source(path).config
    assert config.model.segment_tokens == 10
    # Qwen2 names a window that it does not use.
    path, _ = folder(tmp_path / "qwen", windowed | {"model_type": "qwen2"})
    opened = hub.open_source(path)
    assert opened.config.model.segment_tokens == 32
    assert opened.config.model.backbone_options["window"] == 0


def test_a_long_context_is_read_in_segments(tmp_path):
    path, _ = folder(tmp_path / "model", {"max_position_embeddings": 8192, "eos_token_id": [5, 7]})
    opened = hub.open_source(path)
    assert opened.config.model.segment_tokens == hub.SEGMENT and opened.ends == (5, 7)
    assert opened.guessed == ("segment_tokens 1,024 (of a context of 8,192)",)


def test_what_a_config_leaves_out_is_its_class_default(tmp_path):
    path, _ = folder(tmp_path / "model", {"model_type": "mistral"})
    said = json.loads((path / "config.json").read_text())
    for name in ("sliding_window", "rms_norm_eps", "max_position_embeddings", "eos_token_id"):
        said.pop(name, None)
    (path / "config.json").write_text(json.dumps(said))
    opened = hub.open_source(path)
    options = opened.config.model.backbone_options
    assert (options["window"], options["norm_epsilon"]) == (4096, 1e-6)
    assert opened.config.model.max_positions == 4096 * 32 and opened.ends == ()
    (path / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert hub.open_source(path).ends[0] == 3


def test_a_training_starts_from_its_weights(tmp_path):
    path, flat = folder(tmp_path / "model", {"rope_theta": 500.0, "rope_parameters": None})
    options = dict(hub.open_source(path).config.model.backbone_options)
    model = settings(cell="rmt", backbone_options=options, tied_head=False)
    config = cfg.Config(model=model, prompt=ASKED)
    _, fresh = built(cell="rmt", backbone_options=options, tied_head=False)
    started = weights.flatten(hub.initialise(fresh, config, str(path)))
    for name, value in flat.items():
        assert np.array_equal(started[name], value), name
    assert np.array_equal(started["backbone/head"], flat["backbone/embed_tokens"])
    other = dataclasses.replace(model, backbone_options=options | {"rope_base": 1e4})
    with pytest.raises(WeightsError, match=r"which has rope_base=500.0 \(here 10000.0\)"):
        hub.initialise(fresh, config.replace(model=other), str(path))
