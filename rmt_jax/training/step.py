"""`step(state, batch) -> state, sums`: pure functions, the only code that computes gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from rmt_jax import models
from rmt_jax.models import platform
from rmt_jax.models.schedule import answers
from rmt_jax.runtime.mesh import path_name
from rmt_jax.training import metrics
from rmt_jax.training.losses import Scales, batch_sums, scales
from rmt_jax.types import Batch, Sums

Params = Any  # nested dict of arrays


class TrainState(NamedTuple):
    """All that changes while training; the data need nothing but `step`."""

    step: jax.Array  # i32[]
    params: Params  # float32
    opt: Any


def everything(name: str) -> bool:
    """Every weight is trained."""
    return True


def divide(params: Params, trains: Callable[[str], bool]) -> tuple[Params, Params]:
    """The weights that are trained, by their names 'backbone/wte', and the rest: twice the tree,
    with None in place of the others."""

    def half(wanted: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if trains(path_name(path)) == wanted else None, params
        )

    return half(True), half(False)


def join(trained: Params, frozen: Params) -> Params:
    """The inverse of `divide`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None
    )


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    trains: Callable[[str], bool] = everything,
) -> TrainState:
    """The optimiser has a state of the weights that are trained, and of no other."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(divide(params, trains)[0]))


def make_train_step(
    static: Any,
    optimizer: optax.GradientTransformation,
    rows: int,
    *,
    bptt: int,
    remat: bool,
    accumulate: int = 1,
    memory_drift_penalty: float = 0.0,
    trains: Callable[[str], bool] = everything,
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
      trains: whether the weight of this name changes; others get no gradient and no update.
      mesh: where `data` has several devices, each goes through its own texts and the gradients are
        summed once. Left to the compiler, they are summed in every segment of every microbatch.
    """

    def loss(trained: Params, frozen: Params, batch: Batch, scale: Scales):
        model = models.merge(static, join(trained, frozen))
        found = answers(model, batch, bptt=bptt, remat=remat)
        total, passages, sums = batch_sums(model.backbone, found, batch, rows)
        total = total * scale.answers
        if passages is not None and scale.passages is not None:
            total += passages * scale.passages
        if memory_drift_penalty and batch.background_only is not None:
            moved = (found.drift * batch.background_only).sum()
            total += memory_drift_penalty * scale.drift * moved
        return total, sums

    gradient = jax.grad(loss, has_aux=True)

    def total(trained: Params, frozen: Params, batch: Batch, scale: Scales):
        """Gradient and sums of all rows, in `accumulate` microbatches."""
        if accumulate == 1:
            return gradient(trained, frozen, batch, scale)
        # Row i goes to microbatch i mod n: each keeps rows of every device.
        micro = jax.tree.map(
            lambda x: x.reshape(len(x) // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1),
            batch,
        )

        def body(carry, part):
            return jax.tree.map(jnp.add, carry, gradient(trained, frozen, part, scale)), None

        language = batch.next_token is not None
        start = (jax.tree.map(jnp.zeros_like, trained), metrics.zeros(rows, language))
        return jax.lax.scan(body, start, micro)[0]

    def summed(*inputs):
        return jax.lax.psum(total(*inputs), "data")

    spread = total
    if mesh is not None and mesh.shape["data"] > 1:
        whole, rows_of_device = PartitionSpec(), PartitionSpec("data")
        spread = jax.shard_map(
            summed,
            mesh=mesh,
            in_specs=(whole, whole, rows_of_device, whole),
            out_specs=PartitionSpec(),
            # `fsdp` and `tensor` stay the compiler's, if there are several devices along them. If
            # not, all is by hand: cuDNN's attention can't be compiled where only a part is.
            axis_names={name for name, size in mesh.shape.items() if name == "data" or size == 1},
            check_vma=False,  # else every use of a weight is summed where it stands
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        trained, frozen = divide(state.params, trains)
        with platform.spread_over(mesh):
            grads, sums = spread(trained, frozen, batch, scales(batch))
        updates, opt = optimizer.update(grads, state.opt, trained)
        params = join(optax.apply_updates(trained, updates), frozen)
        return TrainState(state.step + 1, params, opt), sums

    return step


def make_eval_step(static: Any, rows: int, mesh: jax.sharding.Mesh | None = None):
    """Teacher-forced sums of a batch; free-running answers are `rmt_jax.evaluate`'s. mesh: that the
    compiler spreads the texts over."""

    def step(params: Params, batch: Batch) -> Sums:
        model = models.merge(static, params)
        with platform.spread_over(mesh):
            found = answers(model, batch, bptt=0, remat=False)
            return batch_sums(model.backbone, found, batch, rows)[2]

    return step
