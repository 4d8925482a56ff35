"""Checkpoints: the last few and the best; `devices/checkpoints.py` has them on other meshes."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.config import Checkpoint, Mesh
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training.checkpoint import CheckpointError, Checkpoints
from rmt_jax.training.step import TrainState
from rmt_jax.types import WeightInfo

pytestmark = pytest.mark.portable


@pytest.fixture(autouse=True)
def leftovers():
    """What a failed restore of Orbax leaves behind is collected here, not within another test."""
    yield
    gc.collect()


INFOS = {"backbone/blocks/up/kernel": WeightInfo(("layers", "embed", "mlp"), "matrix")}
KERNEL = np.arange(2 * 16 * 32, dtype=np.float32).reshape(2, 16, 32)


def state(step: int, mesh: jax.sharding.Mesh) -> TrainState:
    params = {"backbone": {"blocks": {"up": {"kernel": jnp.asarray(KERNEL + step)}}}}
    whole = TrainState(jnp.int32(step), params, {"mu": params})
    return jax.device_put(whole, sharding.place_state(whole, params, INFOS, mesh))


def kernel(restored: TrainState) -> jax.Array:
    return restored.params["backbone"]["blocks"]["up"]["kernel"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


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
