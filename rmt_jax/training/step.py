"""`step(state, batch) -> state, sums`: pure functions, the only code that computes gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from rmt_jax import models
from rmt_jax.models.schedule import answers
from rmt_jax.training import metrics
from rmt_jax.training.losses import Scales, batch_sums, scales
from rmt_jax.types import Batch, Sums

Params = Any  # nested dict of arrays


class TrainState(NamedTuple):
    """All that changes while training; the data need nothing but `step`."""

    step: jax.Array  # i32[]
    params: Params  # float32
    opt: Any


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    static: Any,
    optimizer: optax.GradientTransformation,
    rows: int,
    *,
    bptt: int,
    remat: bool,
    accumulate: int = 1,
    memory_drift_penalty: float = 0.0,
    mesh: jax.sharding.Mesh | None = None,
):
    """The train step of one model.

    Args:
      static: the static part of the model (`models.split`).
      rows: metric rows, len(tasks) + 1.
      bptt: segments that gradients flow back through; 0: all.
      accumulate: microbatches; their gradients are of sums, so that any split of the batch gives
        the same step up to rounding.
      memory_drift_penalty: weight of what idle segments do to the memory, the mean of
        `RecurrentModel.drift` over them. 0: none.
      mesh: where `data` has several devices, each goes through its own texts and the gradients are
        summed once. Left to the compiler, they are summed in every segment of every microbatch.
    """

    def loss(params: Params, batch: Batch, scale: Scales):
        model = models.merge(static, params)
        found = answers(model, batch, bptt=bptt, remat=remat)
        total, passages, sums = batch_sums(found, batch, rows)
        total = total * scale.answers
        if passages is not None and scale.passages is not None:
            total += passages * scale.passages
        if memory_drift_penalty and batch.background_only is not None:
            moved = (found.drift * batch.background_only).sum()
            total += memory_drift_penalty * scale.drift * moved
        return total, sums

    gradient = jax.grad(loss, has_aux=True)

    def total(params: Params, batch: Batch, scale: Scales):
        """Gradient and sums of all rows, in `accumulate` microbatches."""
        if accumulate == 1:
            return gradient(params, batch, scale)
        # Row i goes to microbatch i mod n: each keeps rows of every device.
        micro = jax.tree.map(
            lambda x: x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1),
            batch,
        )

        def body(carry, part):
            return jax.tree.map(jnp.add, carry, gradient(params, part, scale)), None

        language = batch.next_token is not None
        start = (jax.tree.map(jnp.zeros_like, params), metrics.zeros(rows, language))
        return jax.lax.scan(body, start, micro)[0]

    def summed(*inputs):
        return jax.lax.psum(total(*inputs), "data")

    spread = total
    if mesh is not None and mesh.shape["data"] > 1:
        rows_of_device = PartitionSpec("data")
        spread = jax.shard_map(
            summed,
            mesh=mesh,
            in_specs=(PartitionSpec(), rows_of_device, PartitionSpec()),
            out_specs=PartitionSpec(),
            # `fsdp` and `tensor` stay the compiler's, if there are several devices along them. If
            # not, all is by hand: cuDNN's attention can't be compiled where only a part is.
            axis_names={name for name, size in mesh.shape.items() if name == "data" or size == 1},
            check_vma=False,  # else every use of a weight is summed where it stands
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        grads, sums = spread(state.params, batch, scales(batch))
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt), sums

    return step


def make_eval_step(static: Any, rows: int):
    """Teacher-forced sums of a batch; free-running answers are `rmt_jax.evaluate`'s."""

    def step(params: Params, batch: Batch) -> Sums:
        model = models.merge(static, params)
        return batch_sums(answers(model, batch, bptt=0, remat=False), batch, rows)[2]

    return step
