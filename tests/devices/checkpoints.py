"""Checkpoints are restored on another mesh than they were saved from."""

import jax
import numpy as np
import pytest
from test_checkpoint import KERNEL, kernel, state

from rmt_jax.config import Checkpoint, Mesh
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training.checkpoint import Checkpoints

MESHES = [Mesh(), Mesh(fsdp=8), Mesh(fsdp=2, tensor=4), Mesh(data=2, fsdp=2, tensor=2)]


def test_restored_on_another_mesh(tmp_path):
    folder = tmp_path / "checkpoints"
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


@pytest.mark.parametrize(("mesh", "parts"), list(zip(MESHES, (1, 8, 8, 4), strict=True)), ids=str)
def test_fsdp_and_tensor_divide_the_state(mesh, parts):
    leaves = jax.tree.leaves(state(0, sharding.make_mesh(mesh)).params)
    on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert on_first == KERNEL.nbytes / parts
