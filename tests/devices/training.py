"""The train step on a mesh: the curve of one device, and one sum of gradients per step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import batch, config, curve, infos, make

from rmt_jax.config import Lora, Mesh
from rmt_jax.models.ops import attention
from rmt_jax.runtime import mesh as sharding


@functools.cache
def alone(train: str = "all") -> np.ndarray:
    """The losses of one device; adapters have rank 2."""
    settings = config()
    if train == "all":
        return curve(settings, None)
    tuned = dataclasses.replace(settings.optimizer, train=train)
    return curve(config(optimizer=tuned, lora=Lora(rank=2)), None)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(Mesh(data=8), id="data", marks=pytest.mark.slow),
        pytest.param(Mesh(fsdp=8, data=1), id="fsdp", marks=pytest.mark.slow),
        pytest.param(Mesh(tensor=4, data=2), id="tensor", marks=pytest.mark.slow),
        pytest.param(Mesh(data=2, fsdp=2, tensor=2), id="mixed"),
    ],
)
def test_eight_devices_give_the_curve_of_one(mesh):
    np.testing.assert_allclose(curve(config(), mesh), alone(), rtol=1e-5)


@pytest.mark.parametrize("train", ("memory", "lora"))
def test_a_part_trained_on_fsdp_as_on_one_device(train):
    """The rest is split as well, stays as it was to the bit, and has no moments."""
    tuned = dataclasses.replace(config().optimizer, train=train)
    settings = config(optimizer=tuned, lora=Lora(rank=2))
    grid, said = sharding.make_mesh(Mesh(data=1, fsdp=8)), infos(settings)
    found = curve(settings, Mesh(data=1, fsdp=8))
    np.testing.assert_allclose(found, alone(train), rtol=1e-5)
    step, state = make(settings, grid)
    place = sharding.place_state(state, state.params, said, grid)
    state = jax.device_put(state, place)
    before = jax.tree.map(np.asarray, state.params)
    after = jax.jit(step, out_shardings=(place, None))(state, sharding.put_batch(batch(), grid))[0]
    held = sharding.named(after.opt)
    assert held and not any("backbone/" in name for name in held)
    kept, changed = sharding.named(before), sharding.named(after.params)
    for name, value in kept.items():
        assert np.array_equal(changed[name], value) == name.startswith("backbone/"), name
        assert changed[name].sharding == sharding.named(place.params)[name]


@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=2, tensor=2), Mesh(data=8)], ids=str)
def test_adapters_learn_alike_on_eight_devices(mesh):
    """Their factors are split as the matrices that they stand beside."""
    tuned = dataclasses.replace(config().optimizer, train="lora")
    settings = config(optimizer=tuned, lora=Lora(rank=2))
    found, wanted = curve(settings, mesh), alone("lora")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert wanted[-1] < wanted[0]
    grid, said = sharding.make_mesh(mesh), infos(settings)
    for name, spec in (
        ("up/a", (None, "fsdp", None)),
        ("up/b", (None, None, "tensor")),
        ("down/a", (None, "tensor", None)),
    ):
        name = f"adapters/{name}"
        assert tuple(sharding.weight_spec(name, (1, 16, 16), said[name], grid)) == spec


def test_gradients_are_summed_once_and_not_in_every_segment():
    two = dataclasses.replace(config().optimizer, accumulate=2)
    grid = sharding.make_mesh(Mesh(data=4), jax.devices()[:4])
    step, state = make(config(optimizer=two), grid)
    state = jax.device_put(
        state, sharding.place_state(state, state.params, infos(config(optimizer=two)), grid)
    )
    text = jax.jit(step).lower(state, sharding.put_batch(batch(), grid)).compile().as_text()
    # Computations start at the margin; loops are computations of their own, called by ENTRY.
    holders = set()
    for line in text.splitlines():
        if line and not line[0].isspace():
            computation = line.split()[0]
        if " all-reduce(" in line:
            holders.add(computation)
    assert holders == {"ENTRY"}


@pytest.mark.parametrize(
    "mesh, serves",
    ((Mesh(data=8), True), (Mesh(data=4, fsdp=2), False)),
    ids=("data", "data and fsdp"),
)
def test_cudnn_serves_under_the_train_step_of_several_devices(mesh, serves, monkeypatch):
    """JAX's call of cuDNN compiles where a mesh is split by hand along every axis, or by the
    compiler along every axis; half and half it failed on every machine with two GPUs."""
    grid, seen = sharding.make_mesh(mesh), []

    def attend(queries, keys, values, visible, bias=None, known=None, packed=False):
        manual = jax.sharding.get_abstract_mesh().manual_axes
        seen.append((attention.available(jnp.bfloat16, (8, 592, 12, 64), True, False), manual))
        return attention.plain(queries, keys, values, visible, bias)

    monkeypatch.setattr(attention, "attend", attend)
    step, state = make(config(), grid)
    monkeypatch.setattr(attention, "chosen", lambda *_: "cudnn")
    jax.eval_shape(step, state, batch())
    axes = set(sharding.AXES) if serves else {"data", "tensor"}
    assert seen and all(found == ("cudnn" if serves else "xla") for found, _ in seen)
    assert all(set(manual) == axes for _, manual in seen)
