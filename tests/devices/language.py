"""Passages and answers on a mesh: the step of one device, and gradients that are summed once."""

import jax
import numpy as np
import pytest
from test_language import mixed, settings
from test_steps import infos, make

from rmt_jax.config import Mesh
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import metrics


def stepped(mesh: Mesh | None):
    """Two steps: the sums of each, and the weights."""
    grid = sharding.make_mesh(mesh or Mesh(), jax.devices()[: 8 if mesh else 1])
    step, state = make(settings(), grid)
    place = sharding.place_state(state, state.params, infos(settings()), grid)
    state, program = jax.device_put(state, place), jax.jit(step, out_shardings=(place, None))
    found = []
    for seed in range(2):
        state, sums = program(state, sharding.put_batch(mixed(seed=seed), grid))
        found.append(metrics.means(sums, ("qa1", "novels")))
    return found, jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize(
    "mesh", [Mesh(data=8), Mesh(fsdp=8, data=1), Mesh(data=2, fsdp=2, tensor=2)],
    ids=["data", "fsdp", "mixed"],
)  # fmt: skip
def test_eight_devices_give_the_steps_of_one(mesh):
    (ours, weights), (true, expected) = stepped(mesh), stepped(None)
    for one, other in zip(ours, true, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["nats_per_token"] == pytest.approx(other["nats_per_token"], rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), weights, expected)
