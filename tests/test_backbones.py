"""Gemma 3 and GPT-NeoX under the memory cells; test_llama_torch.py compares them with PyTorch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from test_llama import answers_of, read

from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.api import Model
from rmt_jax.models import costs
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import hub, names, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.runtime import mesh
from rmt_jax.training import optimizer
from rmt_jax.training import step as steps
from rmt_jax.types import Segment

ASKED = cfg.Prompt("description", "every", tiny.WORDS)
OPTIONS = {
    "gemma3": {
        "kv_heads": 1, "head_width": 8, "mlp_width": 24, "global_layers": (1,), "query_scalar": 6,
        "window": 40,
    },
    "neox": {"mlp_width": 24, "rotary_width": 4},
}  # fmt: skip
BOTH = pytest.mark.parametrize("backbone", tuple(OPTIONS))


def settings(backbone, **changes) -> cfg.Model:
    values = dict(
        backbone=backbone, heads=2, backbone_options=OPTIONS[backbone],
        tied_head=backbone == "gemma3",
    )  # fmt: skip
    return tiny.settings(**(values | changes))


def built(backbone, prompt=ASKED, **changes):
    """Static part and params, with every weight drawn, so that nothing hides behind a zero."""
    model = settings(backbone, **changes)
    graph, params = models.split(models.build(model, prompt, tiny.VOCAB, 2, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(
        lambda x: np.asarray(x) + (0.1 * rng.standard_normal(x.shape)).astype(np.float32), params
    )


@pytest.mark.parametrize(
    "backbone, cell",
    (
        ("gemma3", "rmt"),
        pytest.param("gemma3", "delta", marks=pytest.mark.slow),
        pytest.param("neox", "armt", marks=pytest.mark.slow),
    ),
)
def test_a_train_step_moves_every_weight(backbone, cell):
    """And the axes that are said of them are those that they have."""
    config = cfg.Config(
        model=settings(backbone, cell=cell), prompt=ASKED, optimizer=cfg.Optimizer(warmup=0.0)
    )
    graph, params = built(backbone, cell=cell)
    infos = models.outline(config.model, ASKED, tiny.VOCAB, 2).weights
    opt = optimizer.build(config, infos)
    step = jax.jit(steps.make_train_step(graph, opt, 2, bptt=0, remat=True))
    state = steps.init_state(jax.tree.map(jnp.asarray, params), opt)
    state, sums = step(state, tiny.batch(segments=3))
    assert np.isfinite(sums.loss).all()
    before, after = weights.flatten(params), weights.flatten(state.params)
    assert not [name for name in before if np.array_equal(before[name], after[name])]
    plan = mesh.planned((1, 2, 2))
    specs = {n: mesh.weight_spec(n, v.shape, infos[n], plan) for n, v in before.items()}
    inner = [n for n in specs if n.endswith("kernel") and n.startswith("backbone/")]
    assert len(inner) >= 4 and all("tensor" in specs[n] and "fsdp" in specs[n] for n in inner)


@BOTH
@pytest.mark.parametrize("cell", ("rmt", "armt"))
def test_padding_and_the_loop_over_layers_change_nothing(backbone, cell):
    """A loop has each layer's own constants (which layers of Gemma are global)."""
    graph, params = built(backbone, cell=cell)
    tokens, mask = tiny.text()
    mask[1, 2] = False  # a whole segment
    other = np.where(mask, tokens, (tokens + 1) % tiny.VOCAB)
    (logits, memory), (same, equal) = (read(graph, params, t, mask) for t in (tokens, other))
    assert np.array_equal(logits[mask], same[mask])
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(equal), strict=True):
        assert np.array_equal(a, b)
    unrolled, _ = built(backbone, cell=cell, scan_layers=False)
    again, _ = read(unrolled, params, tokens, mask)
    np.testing.assert_allclose(logits[mask], again[mask], atol=2e-5)


@BOTH
def test_delta_starts_as_exactly_the_base_model(backbone):
    plain_graph, plain = built(backbone, cell="none")
    model = settings(backbone, cell="delta")
    graph, params = models.split(models.build(model, ASKED, tiny.VOCAB, 2, nnx.Rngs(0)))
    params["backbone"] = plain["backbone"]
    tokens, mask = tiny.text()
    logits, _ = read(graph, params, tokens, mask)
    wanted, _ = read(plain_graph, plain, tokens, mask)
    np.testing.assert_allclose(logits[mask], wanted[mask], rtol=0, atol=2e-6)


@BOTH
def test_decoding_with_a_cache_is_reading_all_again(backbone):
    config = cfg.Config(model=settings(backbone, cell="rmt"), prompt=cfg.Prompt("none"))
    model = Model(config, built(backbone, config.prompt, cell="rmt")[1])
    tokens = np.random.default_rng(3).integers(0, tiny.VOCAB, (2, tiny.LENGTH + 8))
    count = tiny.LENGTH + 3
    found = model.generate(tokens[:, :count], max_new_tokens=4)
    for new in found.T:
        mask = np.broadcast_to(np.arange(tokens.shape[1]) < count, tokens.shape)
        logits, _ = model.forward(tokens, mask)
        assert np.array_equal(np.argmax(logits[:, count - 1], axis=-1), new)
        tokens[:, count], count = new, count + 1


@pytest.mark.parametrize("backbone", ("gemma3", pytest.param("neox", marks=pytest.mark.slow)))
def test_packed_padding_gives_the_same(backbone, monkeypatch):
    """As on a GPU, where cuDNN's kernel needs no mask (XLA's form here)."""
    graph, params = built(backbone, cell="rmt", scan_layers=False)
    batch = tiny.batch(segments=2)
    mask = batch.mask.copy()
    mask[0, 0, 3:], mask[1, 1, 5:] = False, False
    batch = batch._replace(mask=mask)
    plain, causal, seen = answers_of(graph, params, batch), attention.causal, []

    def fused(queries, keys, values, known, _):
        seen.append(known is None)
        return causal(queries, keys, values, known, "xla")

    monkeypatch.setattr(attention, "available", lambda *_, **__: "cudnn")
    monkeypatch.setattr(attention, "causal", fused)
    for a, b in zip(*map(jax.tree.leaves, (plain, answers_of(graph, params, batch))), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert seen and all(seen)


@BOTH
def test_flops_of_a_layer_are_the_compilers(backbone):
    options = {
        "gemma3": {"kv_heads": 2, "head_width": 32, "mlp_width": 320},
        "neox": {"activation": "gelu_tanh"},
    }[backbone]
    config = settings(
        backbone, cell="none", width=128, heads=4, segment_tokens=64, backbone_options=options
    )
    prompt = cfg.Prompt("none")
    model = models.build(config, prompt, tiny.VOCAB, 1, nnx.Rngs(0))
    segment = Segment(jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool))
    x, context = model.enter(model.initial(1), segment, None)

    def layer(params, x):
        return model.run_layer(params, x, (), model.initial(1).started, context)[0]

    params = jax.tree.map(lambda value: value[0], model.stacked_params())
    counted = jax.jit(layer).lower(params, x).compile().cost_analysis()
    ours = costs.segment_flops(cfg.Config(model=config, prompt=prompt)) / config.layers
    assert ours == pytest.approx(counted["flops"], rel=0.06)


def test_memory_tokens_are_as_large_as_gemmas_embeddings():
    """Which enter the first layer times √D."""
    options = OPTIONS["gemma3"] | {"window": 2000}
    config = settings("gemma3", cell="rmt", memory_tokens=500, backbone_options=options)
    model = models.build(config, ASKED, tiny.VOCAB, 2, nnx.Rngs(0))
    entered = model.backbone.embed(jnp.arange(tiny.VOCAB)).std()
    assert model.memory.tokens[...].std() == pytest.approx(float(entered), rel=0.1)


def test_gemmas_layers_have_the_bases_of_their_kind():
    """Every sixth is global where nothing is said; the bases matter."""
    whole = BACKBONES["gemma3"].options(settings("gemma3", layers=13, backbone_options={}))
    assert whole.global_layers == (5, 11)
    _, params = built("gemma3", cell="none")
    tokens, mask = tiny.text()
    found = []
    for changes in ({}, {"local_rope_base": 9.0}, {"rope_base": 9.0}, {"global_layers": (0,)}):
        options = OPTIONS["gemma3"] | changes
        graph, _ = built("gemma3", cell="none", backbone_options=options)
        found.append(np.asarray(read(graph, params, tokens, mask)[0]))
    for one, other in ((0, 1), (0, 2), (0, 3), (1, 2)):
        assert np.abs(found[one] - found[other])[mask].max() > 1e-3


@pytest.mark.parametrize(
    ("backbone", "changes", "sentence"),
    [
        ("gemma3", {"positions": "alibi"}, "model.positions=alibi: set that to rotary or learned"),
        ("gemma3", {"backbone_options": {"window": 9, "head_width": 4}}, "but the backbone has 9"),
        ("gemma3", {"backbone_options": {"global_layers": (2,)}}, "names layer 2, and there are 2"),
        ("gemma3", {"backbone_options": {"kv_heads": 3}}, "does not divide model.heads 2"),
        ("gemma3", {"backbone_options": {"rope_scaling": "llama3"}}, "none of this family's"),
        ("neox", {"conv_width": 3}, "model.conv_width=3: set that to 0"),
        ("neox", {"heads": 3}, "width 16 does not divide into model.heads 3"),
        ("neox", {"backbone_options": {"rotary_width": 10}}, "no even number of a head's 8"),
        ("neox", {"backbone_options": {"activation": "relu"}}, "must be one of gelu, gelu_tanh"),
    ],
)
def test_settings_that_cannot_be(backbone, changes, sentence):
    with pytest.raises(cfg.ConfigError, match=sentence):
        models.check(settings(backbone, **changes), cfg.Prompt("none"))


def folder(path, backbone, said=None, rename=None):
    """A Hugging Face folder of a drawn model, whose config.json says `said` besides its own."""
    config = settings(backbone, cell="none")
    _, params = built(backbone, cfg.Prompt("none"), cell="none")
    flat = {n: np.asarray(v) for n, v in weights.flatten(params).items()}
    theirs = names.to_theirs(flat, BACKBONES[backbone], CELLS["none"])
    theirs = {(rename or {}).get(n, n): np.ascontiguousarray(v) for n, v in theirs.items()}
    path.mkdir()
    weights.write(path / "model.safetensors", theirs, {})
    own = BACKBONES[backbone].to_hf_config(config, hub.part_of(flat, "backbone"))
    (path / "config.json").write_text(json.dumps(own | (said or {})))
    return path, flat


LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("backbone", "said", "sentence"),
    [
        ("gemma3", {"final_logit_softcapping": 30.0}, "says final_logit_softcapping = 30.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "says attn_logit_softcapping = 50.0"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation = 'silu', but only 'gelu_py"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"attention_bias": True}, "says attention_bias = True"),
        ("gemma3", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {
            "rope_type": "default", "rope_theta": 1e4}}}, "says rope_type = 'linear'"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 2}, "one of them at least, full_att"),
        ("gemma3", {"model_type": "gemma3"}, "model_type = 'gemma3', but only"),
        ("neox", {"hidden_act": "relu"}, "says hidden_act = 'relu', but only 'gelu', 'gelu_fast'"),
        ("neox", {"layer_norm_eps": 1e-6}, "says layer_norm_eps = 1e-06, but only 1e-05"),
        ("neox", {"attention_bias": False}, "says attention_bias = False"),
        ("neox", {"rope_parameters": LINEAR}, "says rope_type = 'linear', but only 'default'"),
        ("neox", {"num_attention_heads": 3}, "num_attention_heads = 3: put|can't be a gpt_neox"),
    ],
)  # fmt: skip
def test_variants_that_they_do_not_compute(tmp_path, backbone, said, sentence):
    path, _ = folder(tmp_path / "model", backbone, said)
    with pytest.raises(WeightsError, match=sentence):
        hub.open_source(path)


@BOTH
def test_a_training_starts_from_their_weights(tmp_path, backbone):
    path, flat = folder(tmp_path / "model", backbone)
    opened = hub.open_source(path)
    assert opened.config.model.segment_tokens <= 40
    model = settings(backbone, cell="rmt", backbone_options=dict(
        opened.config.model.backbone_options))  # fmt: skip
    config = cfg.Config(model=model, prompt=ASKED)
    fresh = built(backbone, cell="rmt", backbone_options=dict(model.backbone_options))[1]
    started = weights.flatten(hub.initialise(fresh, config, str(path)))
    for name, value in flat.items():
        assert np.array_equal(started[name], value), name


def test_transformers_4_says_it_otherwise(tmp_path):
    path, _ = folder(tmp_path / "g", "gemma3")
    new = hub.open_source(path).config
    said = json.loads((path / "config.json").read_text())
    del said["rope_parameters"]
    said |= {"rope_theta": 300.0, "rope_local_base_freq": 7.0}
    (path / "config.json").write_text(json.dumps(said))
    options = hub.open_source(path).config.model.backbone_options
    assert (options["rope_base"], options["local_rope_base"]) == (300.0, 7.0)
    assert options["global_layers"] == new.model.backbone_options["global_layers"] == (1,)

    path, flat = folder(tmp_path / "n", "neox", rename={"embed_out.weight": "lm_head.weight"})
    opened = hub.open_source(path)
    assert np.array_equal(opened.params["backbone"]["head"], flat["backbone/head"])
    said = json.loads((path / "config.json").read_text())
    del said["rope_parameters"]
    said |= {"rotary_pct": 0.25, "rotary_emb_base": 300.0}
    (path / "config.json").write_text(json.dumps(said))
    options = hub.open_source(path).config.model.backbone_options
    assert (options["rotary_width"], options["rope_base"]) == (2, 300.0)


def test_a_family_is_known_by_its_tensors(tmp_path):
    """Where no config.json says it: Gemma's names are Llama's, and two more norms."""
    for backbone in OPTIONS:
        path, _ = folder(tmp_path / backbone, backbone)
        theirs = weights.read_safetensors(path / "model.safetensors")
        assert names.backbone_of(theirs, None, "it") == backbone
    llama = dataclasses.replace(
        settings("gemma3"), backbone="llama", backbone_options={"kv_heads": 1, "mlp_width": 24}
    )
    params = models.split(models.build(llama, ASKED, tiny.VOCAB, 2, nnx.Rngs(0)))[1]
    flat = {n: np.asarray(v) for n, v in weights.flatten(params).items()}
    flat = {n: v for n, v in flat.items() if n.startswith("backbone/")}
    theirs = names.to_theirs(flat, BACKBONES["llama"], CELLS["none"])
    assert names.backbone_of(theirs, None, "it") == "llama"
