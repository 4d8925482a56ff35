"""What the compiler says a step needs on each device."""

import jax
import numpy as np
from flax import nnx

from rmt_jax import models
from rmt_jax.config import Config, Data, Mesh, Model, Prompt, Stage
from rmt_jax.models import costs
from rmt_jax.runtime import hardware
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import optimizer, step_costs
from rmt_jax.training import step as steps
from rmt_jax.types import Batch

CONFIG = Config(
    data=Data(tasks=("qa1",)),
    model=Model(
        cell="rmt",
        layers=2,
        width=256,
        heads=8,
        segment_tokens=8,
        memory_tokens=2,
        positions="alibi",
        dtype="float32",
    ),
    prompt=Prompt(source="none"),
    stages=(Stage(2, 10, 8, 1e-3),),
)


# A text a device, of two segments, one question of two tokens at its end.
SHAPE = costs.Shape(8, 2, 1, 1, 2)


def needed(mesh: Mesh) -> int:
    """Bytes on each of the eight devices that a train step on this mesh needs."""
    grid = sharding.make_mesh(mesh)
    shape, answers = (8, 2, 8), (8, 1, 1)
    batch = Batch(
        tokens=np.ones(shape, np.int32),
        mask=np.ones(shape, bool),
        prompt=np.zeros((8, 0), np.int32),
        prompt_mask=np.zeros((8, 0), bool),
        task=np.zeros(8, np.int32),
        answer_start=np.ones(answers, np.int32),
        answer=np.ones((*answers, 2), np.int32),
        weight=np.ones((*answers, 2), np.float32),
        metric_row=np.zeros(answers, np.int32),
    )
    model = models.build(CONFIG.model, CONFIG.prompt, 512, 1, nnx.Rngs(0))
    static, params = models.split(model)
    infos = model.weights()
    opt = optimizer.build(CONFIG, infos)
    state = steps.init_state(params, opt)
    place = sharding.place_state(state, params, infos, grid)
    step = steps.make_train_step(static, opt, 2, bptt=0, remat=True)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(place, sharding.replicated(grid)))
    lowered = jitted.lower(jax.device_put(state, place), sharding.put_batch(batch, grid))
    compiled = lowered.compile()
    # The plan knows each device's share of weights and moments to the byte; step and sums are left.
    weights, _, moments, _ = step_costs.state_bytes(CONFIG, 512, sharding.mesh_sizes(mesh, 8))
    left = compiled.memory_analysis().output_size_in_bytes - weights - moments
    assert 0 <= left < 1024, left
    size = hardware.needed_memory(compiled)
    assert size is not None
    held = step_costs.step_memory(CONFIG, SHAPE, 512, sharding.mesh_sizes(mesh, 8))
    print(f"{mesh}: planned {held.total:,}, needed {size:,}")
    assert abs(held.total / size - 1) < 0.25, held
    return size


def test_fsdp_lowers_what_each_device_needs():
    copied, split = needed(Mesh()), needed(Mesh(fsdp=8))
    print(f"data=8: {copied:,} bytes a device; fsdp=8: {split:,}")
    # Weights, two moments and gradients are an eighth; gathered weights and activations are not.
    assert split < 0.5 * copied
