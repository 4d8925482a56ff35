"""Greedy decoding of an answer: the last, ragged segment is read once, then one token a step.

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
from rmt_jax.types import Prompt, Segment


class DecodingCache(NamedTuple):
    """What was seen so far, in N + room slots; layer first where a layer owns it."""

    layers: KVCache  # keys, values [layers, B, slots, …]
    mask: jax.Array  # bool[B, slots]  slot holds a token
    positions: jax.Array  # i32[B, slots]
    next: jax.Array  # i32[B]  position of the next token
    state: Any  # memory of layer-wise cells; delta's grows with every token of the answer


def greedy(
    model: RecurrentModel,
    memory: Memory,
    tail: Segment,
    prompt: Prompt | None,
    *,
    max_new_tokens: int,
    end: int | None = None,
) -> jax.Array:
    """The most likely continuation of `tail`, i32[B, max_new_tokens].

    tail: tokens i32[B, L] and mask bool[B, L], at least one token a row, padded at either side.
    Behind the token `end` a row holds `end` only; the loop stops when all rows have ended.
    """
    hidden, cache = prefill(model, memory, tail, prompt, room=max_new_tokens - 1)
    first = jnp.argmax(model.backbone.logits(hidden), axis=-1).astype(jnp.int32)
    filler = -1 if end is None else end
    out = jnp.full((first.shape[0], max_new_tokens), filler, jnp.int32).at[:, 0].set(first)

    def going(carry):
        step, token, ended, _, _ = carry
        return (step < max_new_tokens) & ~ended.all()

    def body(carry):
        step, token, ended, out, cache = carry
        slot = cache.mask.shape[1] - max_new_tokens + step
        hidden, cache = decode(model, memory, token, cache, slot)
        best = jnp.argmax(model.backbone.logits(hidden), axis=-1).astype(jnp.int32)
        token = jnp.where(ended, filler, best)
        return step + 1, token, ended | (token == filler), out.at[:, step].set(token), cache

    carry = (jnp.int32(1), first, first == filler, out, cache)
    return jax.lax.while_loop(going, body, carry)[3]


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
