"""One text read by several devices: each has some of the layers and hands on what these made.

Cell (s, l), segment s in layer l, needs cell (s, l - 1) and the layer's memory after segment s - 1.
While one device is at segment s, the next one is at s - 1: S + devices - 1 steps. The layers of a
device run one after the other, as `recurrence` runs them and with the same savings. (`diagonal` is
for one device: there all layers run as one.) Without gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rmt_jax.models import layout, recurrence
from rmt_jax.models.cells import Memory
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Prompt, Segment


def read_some(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
    *,
    axis: str,
) -> Memory:
    """`recurrence.read_some` on each device of the axis of a mesh (`jax.shard_map`).

    All that is given is whole on every device. Of the memory's state a device returns the rows of
    its own layers: one stretch after the other, they are the state.
    """
    model = recurrence.stop_gradient_params(model)
    model.memory.only_reads = True
    prompt = model.embed_prompt(prompt)
    devices, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    count_here = model.backbone.layers // devices

    def own(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, me * count_here, count_here), tree
        )

    params = own(model.stacked_params())
    each = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(count_here)]
    segments = Segment(*(jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask)))
    moved = segments.mask.any(axis=2) & (jnp.arange(len(segments.mask)) < count)[:, None]
    started = memory.started | (jnp.cumsum(moved, axis=0) - moved > 0)  # before segment s

    def step(index: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        handed, state = carry
        s = jnp.clip(index - me, 0, len(moved) - 1)
        at_work = (index >= me) & (index - me < count)
        segment = jax.tree.map(lambda x: x[s], segments)
        x, context, ends = _entered(model, memory._replace(started=started[s]), segment, prompt)
        x = jnp.where(me == 0, x, handed)
        before = (x, state, started[s], context)
        x, new = _through(model, params, each, before, ends, me == devices - 1)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            kept = (moved[s] & at_work).reshape(-1, *[1] * (old.ndim - 2))
            return jnp.where(kept, new, old)

        x = jax.lax.ppermute(x, axis, [(k, k + 1) for k in range(devices - 1)])
        return x, jax.tree.map(keep, new, state)

    first = jax.tree.map(lambda x: x[0], segments)
    x = jax.eval_shape(lambda: _entered(model, memory, first, prompt)[0])
    start = (jnp.zeros(x.shape, x.dtype), own(memory.state))
    _, state = jax.lax.fori_loop(0, count + devices - 1, step, start)
    return Memory(state, memory.started | moved.any(axis=0))


def _entered(
    model: RecurrentModel, memory: Memory, segment: Segment, prompt: Prompt | None
) -> tuple[jax.Array, AttentionContext, jax.Array]:
    """The input of the first layer, its context, and where write memory stands in it, i32[B, W]."""
    x, context = model.enter(memory, segment, prompt)
    ends = jnp.arange(x.shape[1] - context.write_tokens, x.shape[1])
    ends = jnp.broadcast_to(ends, (len(x), context.write_tokens))
    if not model.packs(x):
        return x, context, ends
    order = layout.packing_order(context.mask)
    x, context = layout.pack(model.backbone, x, context, order)
    return x, context, gather_positions(order.inverse, ends)


def _through(
    model: RecurrentModel,
    params: Any,
    each: list[Any],
    before: tuple[jax.Array, Any, jax.Array, AttentionContext],
    ends: jax.Array,
    is_last: jax.Array,
) -> tuple[jax.Array, Any]:
    """The layers of one device: what they make of x, and their next states, layer first. Of the
    last layer of all, only write memory is wanted.

    params: of these layers, layer first; each: the same, one by one, for a model that has no loop
    over its layers. before: x, states, `started` and context.
    """
    x, state, started, context = before
    states = [jax.tree.map(lambda s, i=i: s[i], state) for i in range(len(each))]

    def run(x: jax.Array, inputs: Any, wanted: jax.Array | None = None) -> tuple[jax.Array, Any]:
        params, state = inputs
        return model.run_layer(params, x, state, started, context, None, wanted)[:2]

    if model.unroll == 1:
        x, first = jax.lax.scan(run, x, jax.tree.map(lambda a: a[:-1], (params, state)))
    else:
        first = []
        for inputs in zip(each[:-1], states[:-1], strict=True):
            x, new = run(x, inputs)
            first.append(new)
    top = (each[-1], states[-1])
    x, last = jax.lax.cond(is_last, lambda x: (x, run(x, top, ends)[1]), lambda x: run(x, top), x)
    if model.unroll == 1:
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), first, last)
    return x, jax.tree.map(lambda *news: jnp.stack(news), *first, last)
