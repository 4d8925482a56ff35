"""Checkpoints: on another mesh, the last few and the best."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.config import Checkpoint, Mesh
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training.checkpoint import CheckpointError, Checkpoints
from rmt_jax.training.step import TrainState


@pytest.fixture(autouse=True)
def leftovers():
    """What a failed restore of Orbax leaves behind is collected here, not within another test."""
    yield
    gc.collect()


KERNEL = np.arange(2 * 16 * 32, dtype=np.float32).reshape(2, 16, 32)


def state(step: int, mesh: jax.sharding.Mesh) -> TrainState:
    params = {"backbone": {"blocks": {"up": {"kernel": jnp.asarray(KERNEL + step)}}}}
    whole = TrainState(jnp.int32(step), params, {"mu": params})
    return jax.device_put(whole, sharding.place_state(whole, params, mesh))


def kernel(restored: TrainState) -> jax.Array:
    return restored.params["backbone"]["blocks"]["up"]["kernel"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


MESHES = [Mesh(), Mesh(fsdp=8), Mesh(fsdp=2, tensor=4), Mesh(data=2, fsdp=2, tensor=2)]


def test_restored_on_another_mesh(folder):
    one = sharding.make_mesh(Mesh(), jax.devices()[:1])
    first = Checkpoints(folder, Checkpoint(keep=1))
    first.save(state(3, sharding.make_mesh(MESHES[-1])))
    first.close()
    for mesh in [one, *map(sharding.make_mesh, MESHES)]:
        again = Checkpoints(folder, Checkpoint(keep=1))
        like = state(0, mesh)
        restored = again.restore(like)
        assert np.array_equal(kernel(restored), KERNEL + 3) and int(restored.step) == 3
        assert kernel(restored).sharding == kernel(like).sharding
        again.close()


def test_fsdp_and_tensor_divide_the_state():
    def bytes_on_first(mesh):
        return sum(
            x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state(0, mesh).params)
        )

    assert bytes_on_first(sharding.make_mesh(Mesh())) == KERNEL.nbytes
    for mesh in MESHES[1:3]:
        assert bytes_on_first(sharding.make_mesh(mesh)) == KERNEL.nbytes / 8


def test_the_last_and_the_best_are_kept(folder):
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    checkpoints = Checkpoints(folder, Checkpoint(keep=2))
    for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None), (6, None)]:
        checkpoints.save(state(step, mesh), score and {"score": score})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6] and checkpoints.best() == 2
    assert checkpoints.validated(2) and not checkpoints.validated(6)
    checkpoints.save(state(6, mesh), {"score": 1.0})  # validated after it was saved
    checkpoints.wait()
    assert checkpoints.best() == 6
    checkpoints.drop_after(5)
    assert 6 not in checkpoints.steps()
    with pytest.raises(CheckpointError, match="has another|cannot be restored"):
        other = {"backbone": {"blocks": {"up": {"kernel": jnp.zeros((2, 16, 64))}}}}
        checkpoints.restore(TrainState(jnp.int32(0), other, {"mu": other}))
    checkpoints.close()
