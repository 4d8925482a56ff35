"""Training a part: adapters of low rank, the memory alone; what is frozen stays, bit for bit."""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from faulty_run import at_call, kill, quick
from faulty_run import config as small_run
from flax import nnx
from safetensors.numpy import load_file

import rmt_jax
from rmt_jax import api, convert, models, validation
from rmt_jax import config as cfg
from rmt_jax.models import lora, recurrence
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.io import adapters, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.runtime.mesh import named
from rmt_jax.runtime.preemption import REQUEUE
from rmt_jax.training import loop, optimizer
from rmt_jax.training import run as training
from rmt_jax.training import step as steps

sys.path.append(str(Path(__file__).with_name("outside")))
import toy_backbone  # noqa: E402, F401

LORA = cfg.Lora(rank=2, alpha=3.0)
NONE = cfg.Prompt("none")


def settings(backbone: str, **changes) -> cfg.Model:
    if backbone == "gpt2":
        return tiny.settings(**changes)
    own = {"backbone": backbone, "position_layout": "plain"}
    own |= {"positions": "rotary"} if backbone == "llama" else {}
    return tiny.settings(**(own | changes))


def built(model: cfg.Model, tuned: cfg.Lora | None = LORA):
    """The static part, and weights of which nothing is zero."""
    made = models.build(model, NONE, tiny.VOCAB, 2, nnx.Rngs(0), tuned)
    graph, params = models.split(made)
    rng = np.random.default_rng(0)

    def drawn(value):
        return value + jnp.asarray(0.3 * rng.standard_normal(value.shape), jnp.float32)

    own = {part: params[part] for part in ("adapters", "memory") if part in params}
    return graph, params | jax.tree.map(drawn, own), made.weights()


def logits(graph, params, schedule=recurrence.all_logits):
    model = models.merge(graph, params)
    tokens, mask = tiny.text()
    return schedule(model, model.initial(2), tokens, mask)[0]


@pytest.mark.parametrize(
    "backbone, unrolled",
    (("gpt2", True), pytest.param("llama", False, marks=pytest.mark.slow), ("averaging", False)),
)
def test_adapters_compute_what_the_merged_matrices_do(backbone, unrolled):
    """In values, and in gradients by the chain rule through W + (alpha / r)·A·B. `averaging`, from
    outside the package, has matrices that no `Linear` holds."""
    model = settings(backbone, scan_layers=not unrolled)
    graph, params, infos = built(model)
    plain, _, _ = built(model, None)
    assert {n for n in infos if n.startswith("adapters/")} == {
        n for n in named(params) if n.startswith("adapters/")
    }

    def adapted(own):
        return jnp.square(logits(graph, params | {"adapters": own})).sum()

    def merged(own):
        flat = named({n: v for n, v in params.items() if n != "adapters"})
        for name, matrix in lora.find(BACKBONES[backbone], backbone_infos(infos), ()).items():
            added = own[name]["a"] @ own[name]["b"] * (LORA.alpha / LORA.rank)
            flat[f"backbone/{matrix}"] = flat[f"backbone/{matrix}"] + added
        return jnp.square(logits(plain, weights.unflatten(flat))).sum()

    ours = jax.jit(jax.value_and_grad(adapted))(params["adapters"])
    wanted = jax.jit(jax.value_and_grad(merged))(params["adapters"])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-4 * np.abs(b).max())
    flat = {n: np.asarray(v) for n, v in named(params).items()}
    again = weights.unflatten(lora.merged(flat, LORA))
    near = np.abs(logits(graph, params)).max() * 1e-5
    np.testing.assert_allclose(logits(plain, again), logits(graph, params), rtol=0, atol=near)


def backbone_infos(infos):
    return {n.removeprefix("backbone/"): i for n, i in infos.items() if n.startswith("backbone/")}


def test_fresh_adapters_change_nothing():
    model = settings("llama")
    made = models.split(models.build(model, NONE, tiny.VOCAB, 2, nnx.Rngs(0), LORA))
    plain = models.split(models.build(model, NONE, tiny.VOCAB, 2, nnx.Rngs(0)))
    assert np.array_equal(logits(*made), logits(*plain))  # and the rest is drawn alike


@pytest.mark.parametrize(
    "backbone, cell, train, name",
    (
        ("gpt2", "rmt", "memory", "muon"),
        pytest.param("llama", "armt", "lora", "adamw", marks=pytest.mark.slow),
        ("averaging", "rmt", "lora", "muon"),
    ),
)
def test_a_step_moves_what_is_trained_and_nothing_else(backbone, cell, train, name):
    """The optimiser has a state of these weights alone; microbatches give the same step."""
    tuned = cfg.Optimizer(name=name, train=train, clip=1.0)
    stages = (cfg.Stage(4, 9, 4, 1e-2),)
    config = cfg.Config(settings(backbone, cell=cell), NONE, optimizer=tuned, stages=stages)
    graph, params, infos = built(config.model, LORA if train == "lora" else None)
    opt, trains = optimizer.build(config, infos), tuned.trains
    state = steps.init_state(params, opt, trains)
    change = {n for n in named(params) if not n.startswith("backbone/")}
    shapes = sorted(v.shape for n, v in named(params).items() if n in change)
    # Muon keeps the three coefficients of its iteration.
    moments = [v.shape for v in jax.tree.leaves(state.opt) if v.ndim and v.shape != (3,)]
    assert change and set(moments) <= set(shapes)
    assert sum(map(np.prod, moments)) <= 2 * sum(map(np.prod, shapes))
    batch = tiny.batch(answered=2, texts=4)

    def step(accumulate):
        function = steps.make_train_step(
            graph, opt, 3, bptt=0, remat=True, accumulate=accumulate, trains=trains
        )
        return jax.jit(function)(state, batch)[0]

    after, parts = step(1), step(2)
    for weight, value in named(after.params).items():
        same = np.array_equal(value, named(params)[weight])
        assert same != (weight in change), weight
        np.testing.assert_allclose(value, named(parts.params)[weight], rtol=0, atol=2e-4)


def test_the_diagonal_schedule_has_them_too():
    model = settings("gpt2", cell="armt", positions="alibi")
    graph, params, infos = built(model)
    config = cfg.Config(model, NONE, optimizer=cfg.Optimizer(train="lora", clip=0.0))
    opt, batch, found = optimizer.build(config, infos), tiny.batch(segments=2), []
    for schedule in ("sequential", "diagonal"):
        other = dataclasses.replace(model, schedule=schedule)
        made = models.outline(other, NONE, tiny.VOCAB, 2, LORA)
        step = steps.make_train_step(
            made.static, opt, 3, bptt=0, remat=True, trains=config.optimizer.trains
        )
        state = steps.init_state(params, opt, config.optimizer.trains)
        found.append(jax.jit(step)(state, batch)[0].opt)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7)


def tuned_run(source: Path) -> cfg.Config:
    model = dataclasses.replace(
        small_run().model, backbone="llama", positions="rotary", conv_width=0
    )
    return small_run(
        model=model, init=str(source), lora=cfg.Lora(rank=2, targets=("q_proj", "down")),
        optimizer=cfg.Optimizer(train="lora", clip=0.0),
    )  # fmt: skip


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A run's folder with a random backbone in it, and quick training."""
    quick(monkeypatch.setattr)
    config = dataclasses.replace(tuned_run(tmp_path), init="", optimizer=cfg.Optimizer())
    model = dataclasses.replace(config.model, cell="none")
    config = config.replace(model=model, lora=cfg.Lora())
    words = rmt_jax.data.tokenizer.load("builtin")
    made = models.build(model, config.prompt, words.vocab_size, 1, nnx.Rngs(5))
    params = jax.tree.map(lambda x: np.asarray(x) * (5 if x.ndim > 2 else 1), models.split(made)[1])
    weights.save(tmp_path / "source", params)
    words.save(tmp_path / "source" / "tokenizer")
    (tmp_path / "source" / "config.json").write_text(json.dumps(cfg.to_dict(config)))
    return tmp_path / "source"


def test_a_run_goes_on_to_the_bit_and_its_adapters_go_out(source, tmp_path, monkeypatch):
    config, whole, path = tuned_run(source), tmp_path / "whole", tmp_path / "run"
    validation.validate(config)
    assert training.run(config, whole) == 0
    put = at_call(3, loop.sharding.put_batch, kill(signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(loop.sharding, "put_batch", put)
        assert training.run(config, path) == REQUEUE
    assert training.run(config, path) == 0
    one, other = (load_file(p / "weights.safetensors") for p in (whole, path))
    assert one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)
    before = load_file(source / "weights.safetensors")
    assert all(np.array_equal(before[n], one[n]) for n in before)  # the backbone
    assert one["adapters/query/b"].any() and one["adapters/query/a"].shape == (1, 16, 2)
    assert {n.split("/")[1] for n in one if n.startswith("adapters/")} == {"query", "down"}

    # What is loaded has no adapters any more, and computes what training computed.
    model = api.load(path)
    assert "adapters" not in model.params
    ids = np.arange(40).reshape(2, 20) % 50
    made = models.outline(config.model, config.prompt, model.vocab, 1, config.lora)
    trained = models.merge(made.static, weights.unflatten(one))
    tokens, mask = np.pad(ids, ((0, 0), (0, 12)))[:, None], np.arange(32)[None, None] < 20
    mask = np.broadcast_to(mask, tokens.shape)
    wanted, _ = recurrence.all_logits(trained, trained.initial(2), tokens, mask)
    np.testing.assert_allclose(model.forward(ids)[0], wanted[:, 0, :20], rtol=0, atol=1e-5)

    # PEFT's layout, for the model that the run started from; and back.
    convert.main(["adapter", "--workdir", str(path), "--out", str(tmp_path / "peft")])
    inside = {file.name for file in (tmp_path / "peft").iterdir()}
    assert inside >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert np.array_equal(tensors[place], one["adapters/query/a"][0].T)
    assert len(tensors) == 4
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (
        2,
        16.0,
        str(source),
    )
    assert set(said["target_modules"]) == {"self_attn.q_proj", "mlp.down_proj"}
    extra = load_file(tmp_path / "peft" / "rmt_jax.safetensors")
    assert set(extra) == {"memory/tokens"}
    again = api.load(tmp_path / "peft")
    assert again.config.model == model.config.model
    np.testing.assert_allclose(again.forward(ids)[0], model.forward(ids)[0], rtol=0, atol=1e-6)
    convert.export_weights(path, tmp_path / "merged")
    np.testing.assert_allclose(
        api.load(tmp_path / "merged").forward(ids)[0], model.forward(ids)[0], rtol=0, atol=1e-6
    )

    with pytest.raises(WeightsError, match="no run with adapters"):
        convert.export_adapter(source, tmp_path / "other")


def test_bad_settings_are_sentences():
    def make(train="lora", **tuned):
        model = settings("llama", cell="none")
        return models.build(model, NONE, tiny.VOCAB, 1, nnx.Rngs(0), cfg.Lora(**tuned))

    with pytest.raises(lora.LoraError, match=r"'q_projj'.*query \(self_attn.q_proj\).*down"):
        make(targets=("q_projj",))
    with pytest.raises(lora.LoraError, match="rank 17 is above the smaller side of query, 16 by"):
        make(rank=17)
    assert dict(make(rank=2, targets=("k_proj", "mlp.up_proj", "out")).adapters.matrices) == {
        name: f"blocks/{name}/kernel" for name in ("key", "out", "up")
    }
    config = cfg.Config(
        settings("llama", cell="none"), NONE, optimizer=cfg.Optimizer(train="memory")
    )
    with pytest.raises(cfg.ConfigError, match="config.init is empty: name the weights"):
        validation.validate(dataclasses.replace(config, data=cfg.Data(tasks=("qa1",))))
    infos = models.outline(config.model, NONE, tiny.VOCAB).weights
    with pytest.raises(cfg.ConfigError, match="model.cell=none has no weights of its own"):
        optimizer.check_trained(config, infos)


def peft_folder(source: Path, out: Path, changes=None, **tensors) -> Path:
    """A folder as PEFT writes it, for the layer of `source`."""
    rng = np.random.default_rng(3)
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    own = {"A": rng.standard_normal((2, 16)), "B": rng.standard_normal((16, 2))}
    files = {f"{place}{k}.weight": v.astype(np.float32) for k, v in own.items()} | tensors
    weights.write(out / "adapter_model.safetensors", files, {})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(source)}
    (out / "adapter_config.json").write_text(json.dumps(said | (changes or {})))
    return out


def test_what_is_no_adapter_of_a_base_is_a_sentence(source, tmp_path):
    def opened(number, changes=None, **tensors):
        return api.load(peft_folder(source, tmp_path / str(number), changes, **tensors))

    opened(0, {"use_dora": False, "init_lora_weights": True, "rank_pattern": {}})
    for number, (key, value) in enumerate(
        (("use_dora", True), ("peft_type", "IA3"), ("rank_pattern", {"q_proj": 4}),
         ("init_lora_weights", "pissa")), 1,
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=f"says {key} = "):
            opened(number, {key: value})
    with pytest.raises(WeightsError, match="lacks r, lora_alpha or"):
        opened(5, {"r": None})
    extra = "base_model.model.model.embed_tokens.lora_embedding_A"
    with pytest.raises(WeightsError, match="embed_tokens.*weights of: q_proj, k_proj"):
        opened(6, **{extra: np.ones((2, 3), np.float32)})
    narrow = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    with pytest.raises(WeightsError, match="another base model"):
        opened(7, **{f"{narrow}A.weight": np.ones((2, 15), np.float32),
                     f"{narrow}B.weight": np.ones((64, 2), np.float32)})  # fmt: skip
    folder = peft_folder(source, tmp_path / "8")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="neither adapter_model.safetensors nor adapter_model"):
        api.load(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        adapters.read(folder)


def test_rank_stabilised_adapters_have_their_own_scale(source, tmp_path):
    plain = adapters.read(peft_folder(source, tmp_path / "a"))
    scaled = adapters.read(peft_folder(source, tmp_path / "b", {"use_rslora": True}))
    assert (plain.scale, scaled.scale) == (2.0, pytest.approx(4 / 2**0.5))
