"""The diagonal schedule of PRMT and ARMT (Sivtsov et al. 2025): the same numbers, fewer steps.

Cell (s, l), segment s in layer l, needs cell (s, l - 1) and the layer's memory after segment s - 1.
All cells with s + l = i are independent: S + layers - 1 steps, each all layers at once (a vmap over
the stacked weights), in place of S * layers. Segments of padding fill and drain the pipeline; they
leave every memory as it is. Worth it where one segment can't fill the device: a GPU at batch 1.
While training it keeps the inputs of all layers for each step, [layers, B, N, D], where the
sequential schedule keeps the memory of each segment.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.config import ConfigError
from rmt_jax.models import language, layout, recurrence
from rmt_jax.models.cells import Memory, check_diagonal
from rmt_jax.models.ops.positions import cast_fp32_grad, gather_positions
from rmt_jax.models.recurrence import Outputs
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Batch, Prompt, Segment


class Pipe(NamedTuple):
    """What stands before each layer; layer first. Each step moves it one layer up."""

    x: jax.Array  # [layers, B, N, D]  packed, where that serves (`layout.pack`)
    place: Any  # i32[layers, B, N]  where each place of the segment stands in x, if packed
    mask: jax.Array  # bool[layers, B, N]
    started: jax.Array  # bool[layers, B]  the memory held something before this segment
    moved: jax.Array  # bool[layers, B]  this segment holds tokens


def read(
    model: RecurrentModel,
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
    return _run(model, memory, tokens, mask, prompt, _nothing, None, remat)[0]


def read_some(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
) -> Memory:
    """`recurrence.read_some` on the diagonal schedule: the first `count` (i32[]) of S segments in
    count + layers - 1 steps. Without gradient."""
    model = recurrence.stop_gradient_params(model)
    known = jnp.asarray(mask) & (jnp.arange(mask.shape[1]) < count)[None, :, None]
    state, body, inputs, layers = _prepared(model, memory, tokens, known, prompt, _nothing, None)

    def step(index, carry):
        return body(carry, jax.tree.map(lambda x: x[index], inputs))[0]

    _, state = jax.lax.fori_loop(0, count + layers - 1, step, state)
    return Memory(state, memory.started | known.any(axis=(1, 2)))


def answer_logits(
    model: RecurrentModel, batch: Batch, *, bptt: int = 0, remat: bool = True
) -> jax.Array:
    """`recurrence.answer_logits` on the diagonal schedule."""
    return model.backbone.logits(answers(model, batch, bptt=bptt, remat=remat).hidden)


def answers(model: RecurrentModel, batch: Batch, *, bptt: int = 0, remat: bool = True) -> Outputs:
    """`recurrence.answers` on the diagonal schedule, without drift.

    Raises ConfigError for `bptt` where a task models a language: layers are in several segments at
    once, and no border lies between stretches of segments.
    """
    length, answered = batch.tokens.shape[1], batch.answer_start.shape[1]
    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    next_token = batch.next_token
    cut = 0 if next_token is not None else recurrence.before_cut(length, answered, bptt)
    if next_token is not None:
        check_language(bptt)
        next_token = jnp.swapaxes(jnp.asarray(next_token), 0, 1)
    memory = model.initial(batch.tokens.shape[0])
    if cut:
        lost = recurrence.stop_gradient_params(model)
        memory = read(lost, memory, batch.tokens[:, :cut], batch.mask[:, :cut], prompt)
        memory = jax.lax.stop_gradient(memory)
    # A place for every segment, though only those of the last R are looked at.
    silent = length - answered - cut
    at = jnp.pad(jnp.swapaxes(jnp.asarray(batch.answer_start), 0, 1), ((silent, 0), (0, 0), (0, 0)))
    answer_tokens = batch.answer.shape[-1]

    def take(top: jax.Array, extra: tuple[jax.Array, jax.Array | None]):
        at, next_token = extra
        hidden, nats = model.backbone.final_norm(top), None
        if next_token is not None:
            nats = language.nats(model.backbone, hidden, next_token).sum(axis=1)
        return recurrence.gather(hidden, at, answer_tokens), nats

    tokens, mask = batch.tokens[:, cut:], batch.mask[:, cut:]
    _, (hidden, nats) = _run(model, memory, tokens, mask, prompt, take, (at, next_token), remat)
    hidden = jnp.moveaxis(hidden[silent:], 0, 1)
    drift = jnp.zeros(batch.answer_start.shape[:2])
    return Outputs(hidden, drift, None if nats is None else nats.T)


def check_language(bptt: int) -> None:
    """Raises ConfigError for what language modelling can't have on this schedule."""
    if bptt:
        raise ConfigError(
            f"model.bptt {bptt} can't cut the gradient of language modelling on the diagonal"
            " schedule, whose layers are in several segments at once: set model.bptt to 0, or"
            " model.schedule to auto."
        )


def _nothing(top: jax.Array, _: Any) -> None:
    """What reading takes of a segment's text output."""


def _run(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    take: Any,
    extra: Any,
    remat: bool,
) -> tuple[Memory, Any]:
    """The final memory, and `take(top layer's text output, extra[s])` of each segment s."""
    start, body, inputs, layers = _prepared(model, memory, tokens, mask, prompt, take, extra)
    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    (_, state), out = jax.lax.scan(body, start, inputs)
    out = jax.tree.map(lambda x: x[layers - 1 :], out)
    return Memory(state, memory.started | jnp.asarray(mask).any(axis=(1, 2))), out


def _prepared(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    take: Any,
    extra: Any,
) -> tuple[Any, Any, Any, int]:
    """The loop over S + layers - 1 diagonals: its carry (`Pipe`, the layers' memories) at the
    start, its body, the inputs of each step, and the number of layers."""
    check_diagonal(model.cell)
    prompt = model.embed_prompt(prompt)
    segments = Segment(*(jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask)))
    length = segments.tokens.shape[2]
    weights = model.stacked_params()
    layers = model.backbone.layers

    moved = segments.mask.any(axis=2)
    started = memory.started | (jnp.cumsum(moved, axis=0) - moved > 0)  # before segment s

    def enter(segment: Segment, started: jax.Array):
        return model.enter(memory._replace(started=started), segment, prompt)

    first, context = enter(jax.tree.map(lambda x: x[0], segments), started[0])
    sizes = (context.sections, context.read_tokens, context.write_tokens)
    writes, causal = context.write_tokens, context.causal
    # Where each place goes, of all segments at once: sorting is slow in small pieces.
    packs, order = model.packs(first), None
    if packs:
        masks = jax.vmap(lambda *inputs: enter(*inputs)[1].mask)(segments, started)
        order = layout.packing_order(masks)

    def entering(inputs) -> Pipe:
        segment, started, moved, order = inputs
        x, context = enter(segment, started)
        if order is None:
            return Pipe(x, None, context.mask, started, moved)
        x, context = layout.pack(model.backbone, x, context, order)
        return Pipe(x, order.inverse, context.mask, started, moved)

    each = (segments, started, moved, order)
    first = entering(jax.tree.map(lambda x: x[0], each))
    pipe = jax.tree.map(
        lambda x: jnp.zeros((layers, *x.shape), x.dtype).at[0].set(x),
        first,
    )
    # While a segment is worked on the next one enters; the last reaches the top layers - 1 steps
    # after it has.
    following = jax.tree.map(
        lambda x: jnp.pad(x[1:], [(0, layers)] + [(0, 0)] * (x.ndim - 1)),
        each,
    )
    late = jax.tree.map(lambda x: jnp.pad(x, [(layers - 1, 0)] + [(0, 0)] * (x.ndim - 1)), extra)
    cast = recurrence.stop_gradient_params(model).stacked_params()

    def cell(weights, cast, x, state, mask, started, moved):
        weights = jax.tree.map(
            lambda w, c: cast_fp32_grad(w, c) if w.ndim > 1 else w, weights, cast
        )
        context = layout.make_context(model.backbone, mask, *sizes, packs, causal)
        x, new, _ = model.run_layer(weights, x, state, started, context)

        def keep(new, old):
            return jnp.where(moved.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return x, jax.tree.map(keep, new, state)

    def body(carry, inputs):
        pipe, state = carry
        following, extra = inputs
        on = (pipe.mask, pipe.started, pipe.moved)
        x, state = jax.vmap(cell)(weights, cast, pipe.x, state, *on)
        stop = x.shape[2] - writes
        top = gather_positions(x[-1], pipe.place[-1]) if packs else x[-1]
        out = take(top[:, stop - length : stop], extra)
        pipe = jax.tree.map(
            lambda up, new: jnp.concatenate([new[None], up[:-1]]),
            pipe._replace(x=x),
            entering(following),
        )
        return (pipe, state), out

    return (pipe, memory.state), body, (following, late), layers
