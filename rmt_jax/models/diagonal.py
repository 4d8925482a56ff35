"""The diagonal schedule of PRMT and ARMT (Sivtsov et al. 2025): the same numbers, fewer steps.

Cell (s, l), segment s in layer l, needs cell (s, l - 1) and the layer's memory after segment s - 1.
All cells with s + l = i are independent: S + layers - 1 steps, each all layers at once (a vmap over
the stacked weights), in place of S * layers. Segments of padding fill and drain the pipeline; they
leave every memory as it is. Worth it where one segment can't fill the device: a GPU at batch 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.config import ConfigError
from rmt_jax.models import recurrence
from rmt_jax.models.cells import Memory, Plain
from rmt_jax.models.layerwise import ARMT, PRMT
from rmt_jax.shapes import Batch, Prompt, Segment


class Pipe(NamedTuple):
    """What stands before each layer; layer first. Each step moves it one layer up."""

    x: jax.Array  # [layers, B, N, D]
    mask: jax.Array  # bool[layers, B, N]
    started: jax.Array  # bool[layers, B]  the memory held something before this segment
    moved: jax.Array  # bool[layers, B]  this segment holds tokens


def read(
    model: Plain,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None = None,
    *,
    remat: bool = False,
) -> Memory:
    """`recurrence.read` on the diagonal schedule: tokens i32[B, S, L] -> Memory.

    Raises ConfigError for cells whose top feeds the next bottom (RMT) or that have no memory.
    """
    return _run(model, memory, tokens, mask, prompt, lambda top, _: None, None, remat)[0]


def answer_logits(model: Plain, batch: Batch, *, remat: bool = True) -> jax.Array:
    """`recurrence.answer_logits` (all segments differentiated) on the diagonal schedule."""
    silent = batch.tokens.shape[1] - batch.at.shape[1]
    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    # A place for every segment, though only those of the last R are looked at.
    at = jnp.pad(jnp.swapaxes(jnp.asarray(batch.at), 0, 1), ((silent, 0), (0, 0), (0, 0)))
    answer_tokens = batch.answer.shape[-1]

    def take(top: jax.Array, at: jax.Array) -> jax.Array:
        return recurrence.gather(model.backbone.ln_f(top), at, answer_tokens)

    memory = model.initial(batch.tokens.shape[0])
    _, hidden = _run(model, memory, batch.tokens, batch.mask, prompt, take, at, remat)
    return model.backbone.logits(jnp.moveaxis(hidden[silent:], 0, 1))


def _run(
    model: Plain,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    take: Any,
    extra: Any,
    remat: bool,
) -> tuple[Memory, Any]:
    """The final memory, and `take(top layer's text output, extra[s])` of each segment s."""
    if not isinstance(model, (PRMT, ARMT)):
        raise ConfigError(
            "The diagonal schedule needs a cell whose layers keep their own memory, prmt or armt: "
            "in rmt the last layer's output of one segment is the first layer's input of the next."
        )
    segments = Segment(*(jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask)))
    count, length = segments.tokens.shape[0], segments.tokens.shape[2]
    weights, state = model.layer_weights(), memory.state
    layers = jax.tree.leaves(weights)[0].shape[0]

    moved = segments.mask.any(axis=2)
    started = memory.started | (jnp.cumsum(moved, axis=0) - moved > 0)  # before segment s
    first, view = _enter(model, memory, jax.tree.map(lambda x: x[0], segments), started[0], prompt)
    sections, reads, writes = view.sections, view.reads, view.writes

    def empty(x):
        return jnp.zeros((layers, *x.shape), x.dtype)

    pipe = Pipe(empty(first), empty(view.mask), empty(started[0]), empty(moved[0]))
    # The last segment reaches the top layers - 1 steps after it has entered.
    drain = jax.tree.map(
        lambda x: jnp.pad(x, [(0, layers - 1)] + [(0, 0)] * (x.ndim - 1)),
        (segments, started, moved),
    )
    late = jax.tree.map(lambda x: jnp.pad(x, [(layers - 1, 0)] + [(0, 0)] * (x.ndim - 1)), extra)

    def cell(weights, x, state, mask, started, moved):
        view = model.view(mask, sections, reads, writes)
        x, new, _ = model.layer(weights, x, state, started, view)

        def keep(new, old):
            return jnp.where(moved.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return x, jax.tree.map(keep, new, state)

    def body(carry, inputs):
        pipe, state = carry
        (segment, started, moved), extra = inputs
        x, view = _enter(model, memory, segment, started, prompt)
        pipe = jax.tree.map(
            lambda up, new: jnp.concatenate([new[None], up[:-1]]),
            pipe,
            Pipe(x, view.mask, started, moved),
        )
        x, state = jax.vmap(cell)(weights, pipe.x, state, pipe.mask, pipe.started, pipe.moved)
        stop = x.shape[2] - writes
        out = take(x[-1, :, stop - length : stop], extra)
        return (pipe._replace(x=x), state), out

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    (_, state), out = jax.lax.scan(body, (pipe, state), (drain, late))
    out = jax.tree.map(lambda x: x[layers - 1 :], out)
    assert jax.tree.leaves(out) == [] or jax.tree.leaves(out)[0].shape[0] == count
    return Memory(state, memory.started | moved.any(axis=0)), out


def _enter(
    model: Plain, memory: Memory, segment: Segment, started: jax.Array, prompt: Prompt | None
):
    """The first layer's input; of the memory only the flag counts here."""
    return model.enter(memory._replace(started=started), segment, prompt)
