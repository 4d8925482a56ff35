"""Decoding of an answer: the last, ragged segment is read once, then one token a step.

Keys and values of what was seen are kept (a KV cache). While decoding, the read memory is seen and
nothing that lasts is written: no write tokens (RMT), no write to the associations (ARMT); what a
delta memory takes up from the question and the answer ends with them. All shapes are
static, so that one compilation serves every text and every batch of the same size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models.cells import Memory
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.models.sampling import Draw, next_token
from rmt_jax.types import Prompt, Segment


class DecodingCache(NamedTuple):
    """What was seen so far, in N + room slots; layer first where a layer owns it."""

    layers: KVCache  # keys, values [layers, B, slots, …]
    mask: jax.Array  # bool[B, slots]  slot holds a token
    positions: jax.Array  # i32[B, slots]
    next: jax.Array  # i32[B]  position of the next token
    state: Any  # memory of layer-wise cells; delta's grows with every token of the answer


def continue_text(
    model: RecurrentModel,
    memory: Memory,
    tail: Segment,
    prompt: Prompt | None,
    draw: Draw | None = None,
    *,
    max_new_tokens: int,
    ends: tuple[int, ...] = (),
) -> jax.Array:
    """A continuation of `tail`, i32[B, max_new_tokens]: the likeliest tokens, or drawn ones.

    tail: tokens i32[B, L] and mask bool[B, L], at least one token a row, padded at either side.
    ends: tokens that end a row, which then repeats the one that ended it; the loop stops when all
    rows have ended.
    """
    first, cache = first_token(model, memory, tail, prompt, draw, room=max_new_tokens - 1)
    out = jnp.zeros((first.shape[0], max_new_tokens), jnp.int32).at[:, 0].set(first)

    def is_end(token):
        return sum((token == end for end in ends), jnp.zeros(token.shape, bool))

    def going(carry):
        step, token, ended, _, _ = carry
        return (step < max_new_tokens) & ~ended.all()

    def body(carry):
        step, token, ended, out, cache = carry
        made, cache = following_token(model, memory, token, cache, draw, step, max_new_tokens)
        token = jnp.where(ended, token, made)
        return step + 1, token, ended | is_end(token), out.at[:, step].set(token), cache

    carry = (jnp.int32(1), first, is_end(first), out, cache)
    step, last, _, out, _ = jax.lax.while_loop(going, body, carry)
    return jnp.where(jnp.arange(max_new_tokens) < step, out, last[:, None])


def first_token(
    model: RecurrentModel,
    memory: Memory,
    tail: Segment,
    prompt: Prompt | None,
    draw: Draw | None,
    *,
    room: int,
) -> tuple[jax.Array, DecodingCache]:
    """The token i32[B] after the tail, and the cache with room for `room` more."""
    hidden, cache = prefill(model, memory, tail, prompt, room)
    return next_token(model.backbone.logits(hidden), draw, 0), cache


def following_token(
    model: RecurrentModel,
    memory: Memory,
    token: jax.Array,
    cache: DecodingCache,
    draw: Draw | None,
    step: jax.Array,
    max_new_tokens: int,
) -> tuple[jax.Array, DecodingCache]:
    """Token number `step` of a continuation, i32[B], after `token`; and the next cache."""
    slot = cache.mask.shape[1] - max_new_tokens + step
    hidden, cache = decode(model, memory, token, cache, slot)
    return next_token(model.backbone.logits(hidden), draw, step), cache


def prefill(
    model: RecurrentModel, memory: Memory, tail: Segment, prompt: Prompt | None, room: int
) -> tuple[jax.Array, DecodingCache]:
    """Reads the tail. Returns the hidden state [B, D] of its last token, and the cache."""
    x, context = model.enter(memory, _right_aligned(tail), prompt, decoding=True)
    last = jnp.full((len(x), 1), x.shape[1] - 1)
    x, state, seen = model.layers(x, memory, context, keep_cache=True, query_positions=last)
    assert seen is not None
    cache = DecodingCache(
        layers=seen._replace(keys=_roomy(seen.keys, room, 2), values=_roomy(seen.values, room, 2)),
        mask=_roomy(context.mask, room, 1),
        positions=_roomy(context.positions, room, 1),
        next=context.mask.sum(axis=1, dtype=jnp.int32),
        state=state,
    )
    return model.backbone.final_norm(x[:, -1]), cache


def decode(
    model: RecurrentModel, memory: Memory, token: jax.Array, cache: DecodingCache, slot: jax.Array
) -> tuple[jax.Array, DecodingCache]:
    """One step: token i32[B] goes to `slot`. Returns its hidden state [B, D] and the next cache."""
    own = cache.next[:, None]
    x = model.backbone.embed(token[:, None]) + model.backbone.position_embedding(own)
    here = jnp.ones_like(own, bool)
    keys = jnp.concatenate([cache.positions, own], axis=1)
    reads = model.memory.memory_tokens if model.memory.reads else 0
    distant = jnp.arange(keys.shape[1])[None, :] >= reads
    data = model.backbone.position_data(own, keys, distant)
    visible = jnp.concatenate([cache.mask, here], axis=1)[:, None, :]
    context = AttentionContext(own, here, visible, data, sections=((0, 1),))
    memory = memory._replace(state=cache.state)
    x, state, seen = model.layers(x, memory, context, cache.layers, keep_cache=True)
    assert seen is not None

    def put(kept, new, axis):
        return jax.lax.dynamic_update_slice_in_dim(kept, new, slot, axis)

    past = seen._replace(
        keys=put(cache.layers.keys, seen.keys, 2), values=put(cache.layers.values, seen.values, 2)
    )
    mask, positions = put(cache.mask, here, 1), put(cache.positions, own, 1)
    return model.backbone.final_norm(x[:, -1]), DecodingCache(
        past, mask, positions, cache.next + 1, state
    )


def _right_aligned(tail: Segment) -> Segment:
    """Padding first, so that the last token of every row stands in the last place."""
    mask = jnp.asarray(tail.mask)
    order = jnp.argsort(mask, axis=1, stable=True)
    return Segment(
        jnp.take_along_axis(jnp.asarray(tail.tokens), order, axis=1),
        jnp.take_along_axis(mask, order, axis=1),
    )


def _roomy(x: jax.Array, room: int, axis: int) -> jax.Array:
    return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])
