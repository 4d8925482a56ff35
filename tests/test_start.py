"""The state that a run starts from: the same numbers, drawn, loaded or restored onto a mesh."""

import dataclasses

import jax
import numpy as np
import pytest
import test_shapes
import test_weights
import tiny
from flax import nnx

from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.models.io import hub, lazy, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import optimizer
from rmt_jax.training.start import Start

ASKED = cfg.Prompt("learned", "every", tiny.WORDS)
MESH = {"data": 1, "fsdp": jax.device_count()} if jax.device_count() > 1 else {}


def config(backbone="gpt2", cell="rmt", init="", train="all", **changes) -> cfg.Config:
    model = tiny.settings(backbone=backbone, cell=cell, **changes)
    stage = cfg.Stage(2, 3, 8, 1e-3)
    return cfg.Config(
        model, ASKED, cfg.Data(tasks=("qa1", "qa2")), (stage,),
        optimizer=cfg.Optimizer(train=train), lora=cfg.Lora(rank=2), init=str(init), seed=3,
    )  # fmt: skip


def laid_out(tree: cfg.Config, mesh: cfg.Mesh | None = None) -> Start:
    start = Start(tree, tiny.VOCAB, 2)
    grid = sharding.make_mesh(mesh or cfg.Mesh(**MESH))
    start.lay_out(optimizer.build(tree, start.outline.weights), grid)
    return start


def eagerly(tree: cfg.Config) -> dict[str, np.ndarray]:
    """Weights that are drawn one by one, on one device."""
    rngs = nnx.Rngs(tree.seed)
    built = models.build(tree.model, tree.prompt, tiny.VOCAB, 2, rngs, tree.adapters)
    return weights.flatten(models.split(built)[1])


def as_before(tree: cfg.Config, source) -> dict[str, np.ndarray]:
    """What a training began with when all of it was in the host's memory: the source's weights in
    place of the drawn ones, memory tokens scaled to its embeddings."""
    fresh = {name: np.asarray(value) for name, value in eagerly(tree).items()}
    own = weights.flatten(hub.open_source(source).params)
    table = next(n for n in ("backbone/wte", "backbone/embed_tokens") if n in own)
    scale = own[table].astype(np.float32).std() / fresh[table].std()
    scaled = {"memory/tokens": fresh["memory/tokens"] * scale} if "memory/tokens" in fresh else {}
    return fresh | scaled | {name: own[name] for name in own}


@pytest.mark.parametrize("family", ("llama", "qwen2", "separate head", "gpt2"))
@pytest.mark.parametrize("train", ("all", "lora"))
def test_loaded_a_tensor_at_a_time_as_at_once(tmp_path, family, train):
    backbone, options, tied = test_shapes.FAMILIES[family]
    path = test_shapes.folder(tmp_path / "model", backbone, options, tied)
    tree = config(backbone, "rmt", path, train, backbone_options=options, tied_head=tied)
    start = laid_out(tree)
    found, wanted = weights.flatten(start.loaded()), as_before(tree, path)
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name
        assert found[name].sharding == weights.flatten(start.place.params)[name]


def test_frozen_weights_have_no_moments(tmp_path):
    path = test_shapes.folder(tmp_path / "model", *test_shapes.FAMILIES["qwen2"])
    options = test_shapes.FAMILIES["qwen2"][1]
    start = laid_out(config("llama", "delta", path, "lora", backbone_options=options))
    state = start.first()
    moments = {n.split("/mu/")[-1] for n in sharding.named(state.opt) if "/mu/" in n}
    assert moments and not any(name.startswith("backbone/") for name in moments)
    assert {"adapters/query/a", "prompt/table"} <= moments
    for name, leaf in sharding.named(state).items():
        assert leaf.sharding == sharding.named(start.place)[name], name
        assert leaf.shape == sharding.named(start.like)[name].shape


def test_the_memorys_rate_is_a_multiple():
    tree = config(cell="delta")
    faster = dataclasses.replace(tree.optimizer, memory_lr_multiplier=10.0)
    params = weights.unflatten({n: jax.numpy.ones(x.shape) for n, x in eagerly(tree).items()})
    infos, moved = laid_out(tree).outline.weights, []
    for one in (tree, tree.replace(optimizer=faster)):
        rule = optimizer.build(one, infos)
        step, _ = rule.update(params, rule.init(params), params)
        moved.append(weights.flatten(step))
    for name, value in moved[0].items():
        times = 10 if name.startswith("memory/") else 1
        np.testing.assert_allclose(moved[1][name], times * value, rtol=1e-6, err_msg=name)
        assert np.all(value)


def test_parts_are_read_once_and_only_where_they_live():
    """A stacked weight [3, 8, 4]: a layer at a time, whatever number of devices want it."""
    value = np.arange(96, dtype=np.float32).reshape(3, 8, 4)
    asked = []

    def read(index):
        asked.append(tuple((part.start, part.stop) for part in index))
        return value[index]

    source = lazy.stack([lazy.LazyArray((4, 8), np.float32, lambda i, n=n: read((slice(n, n + 1),
        *i[::-1]))[0].T).T for n in range(3)])  # fmt: skip
    grid = sharding.make_mesh(cfg.Mesh(**MESH))
    spec = jax.sharding.PartitionSpec(None, "fsdp", None)
    found = lazy.to_devices(source, jax.sharding.NamedSharding(grid, spec))
    assert np.array_equal(found, value)
    assert asked == [((n, n + 1), (0, 8), (0, 4)) for n in range(3)]


@pytest.mark.parametrize("shape", ((5, 3), (2, 4, 3), (7,)), ids=str)
def test_a_lazy_array_is_its_numbers(shape):
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    own = lazy.LazyArray(shape, np.float32, lambda index: value[index])
    order, more = np.arange(shape[-1])[::-1], value[:2] * 2
    for found, wanted in (
        (own, value),
        (own.T, value.T),
        (own.astype(np.float16), value.astype(np.float16)),
        (lazy.columns(own, order), value[..., order]),
        (lazy.stack([own, own.astype(np.float32)]), np.stack([value, value])),
        (lazy.concatenate(own, more), np.concatenate([value, more])),
    ):
        assert np.array_equal(found, wanted) and found.shape == wanted.shape
        assert found.dtype == wanted.dtype and (found.size, found.ndim) == (
            wanted.size,
            wanted.ndim,
        )
        for cut in (slice(0, 0), slice(1, None), slice(shape[0], None), slice(1, 2)):
            assert np.array_equal(found[cut], wanted[cut])
        last = (*[slice(None)] * (wanted.ndim - 1), slice(1, 2))
        assert np.array_equal(found[last], wanted[last])
    assert lazy.equal(own, value.copy()) and not lazy.equal(own, value + 1)
    assert not lazy.equal(own, value[:1])


def test_the_deviation_is_numpys():
    table = np.random.default_rng(1).standard_normal((301, 77)).astype(np.float32) + 0.3
    assert hub._std(table) == table.std() and hub._std(table).dtype == np.float32
    assert np.array_equal(table, np.array(table))


def test_a_file_of_numbers_that_numpy_has_not(tmp_path):
    file = weights.write(tmp_path / "w.safetensors", {"a": np.zeros((2, 4), np.uint8)}, {})
    # A kind of one byte as well: the head says another name for the same bytes.
    file.write_bytes(file.read_bytes().replace(b'"dtype":"U8"', b'"dtype":"F8_E5M2"'[:12]))
    with pytest.raises(weights.WeightsError, match="can't be"):
        weights.open_safetensors(file)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_training_starts_with_more_memory_tokens(tmp_path, dtype):
    """Those of the source first; the others as drawn, at the scale of its embeddings."""
    run, source = test_weights.workdir(tmp_path / "run", positions="alibi")
    source["backbone/wte"] = 3 * source["backbone/wte"]
    weights.save(run, weights.unflatten(source), dtype)
    held = weights.flatten(weights.load(run))["memory/tokens"]
    few = len(held)

    def started(count):
        changes = {"memory_tokens": count, "positions": "alibi"}
        fresh = tiny.model(**changes)[1]
        config = cfg.Config(model=tiny.settings(**changes), prompt=cfg.Prompt("none"))
        return weights.flatten(hub.initialise(fresh, config, str(run))), weights.flatten(fresh)

    found, fresh = started(few + 3)
    np.testing.assert_array_equal(found["memory/tokens"][:few], held)
    drawn = fresh["memory/tokens"][few:]
    np.testing.assert_allclose(found["memory/tokens"][few:], 3 * drawn, rtol=1e-2)
    assert found["memory/tokens"].dtype == np.float32
    with pytest.raises(
        WeightsError, match=f"{few}, .* there and .* give model.memory_tokens={few} or more"
    ):
        started(few - 1)


def test_another_number_of_layers_is_refused_with_the_way_out(tmp_path):
    run = test_weights.workdir(tmp_path / "run", positions="alibi")[0]
    with pytest.raises(WeightsError, match=r"It has 2 layers: give model\.layers=2\."):
        laid_out(config("gpt2", "rmt", run, positions="alibi", layers=3)).loaded()
