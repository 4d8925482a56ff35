"""Greedy decoding of an answer: the last, ragged segment is read once, then one token a step.

Keys and values of what was seen are kept (a KV cache). While decoding, the read memory is seen and
nothing that lasts is written: no write tokens (RMT), no write to the associations (ARMT); what a
delta memory takes up from the question and the answer ends with them. All shapes are
static, so that one compilation serves every text and every batch of the same size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models.backbones.gpt2 import Past, View
from rmt_jax.models.cells.base import Memory, Plain
from rmt_jax.models.ops import attention
from rmt_jax.types import Prompt, Segment


class Cache(NamedTuple):
    """What was seen so far, in N + room slots; layer first where a layer owns it."""

    past: Past  # keys, values [layers, B, slots, H, d]; inputs [layers, B, W - 1, D]
    mask: jax.Array  # bool[B, slots]  slot holds a token
    positions: jax.Array  # i32[B, slots]
    next: jax.Array  # i32[B]  position of the next token
    state: Any  # memory of layer-wise cells; delta's grows with every token of the answer


def greedy(
    model: Plain,
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
    model: Plain, memory: Memory, tail: Segment, prompt: Prompt | None, room: int
) -> tuple[jax.Array, Cache]:
    """Reads the tail. Returns the hidden state [B, D] of its last token, and the cache."""
    x, view = model.enter(memory, _right_aligned(tail), prompt, decoding=True)
    last = jnp.full((len(x), 1), x.shape[1] - 1)
    x, state, seen = model.layers(x, memory, view, keep=True, top=last)
    assert seen is not None
    cache = Cache(
        past=Past(_roomy(seen.keys, room, 2), _roomy(seen.values, room, 2), seen.inputs),
        mask=_roomy(view.mask, room, 1),
        positions=_roomy(view.positions, room, 1),
        next=view.mask.sum(axis=1, dtype=jnp.int32),
        state=state,
    )
    return model.backbone.ln_f(x[:, -1]), cache


def decode(
    model: Plain, memory: Memory, token: jax.Array, cache: Cache, slot: jax.Array
) -> tuple[jax.Array, Cache]:
    """One step: token i32[B] goes to `slot`. Returns its hidden state [B, D] and the next cache."""
    own = cache.next[:, None]
    x = model.backbone.embed(token[:, None]) + model.backbone.place(own)
    here = jnp.ones_like(own, bool)
    bias = None
    if model.alibi:
        keys = jnp.concatenate([cache.positions, own], axis=1)
        reads = model.reading * model.memory_tokens
        counted = jnp.arange(keys.shape[1])[None, :] >= reads
        bias = attention.alibi(model.heads, own, keys, counted)
    visible = jnp.concatenate([cache.mask, here], axis=1)[:, None, :]
    view = View(own, here, visible, bias, sections=((0, 1),))
    memory = memory._replace(state=cache.state)
    x, state, seen = model.layers(x, memory, view, cache.past, keep=True)
    assert seen is not None

    def put(kept, new, axis):
        return jax.lax.dynamic_update_slice_in_dim(kept, new, slot, axis)

    past = Past(
        put(cache.past.keys, seen.keys, 2), put(cache.past.values, seen.values, 2), seen.inputs
    )
    mask, positions = put(cache.mask, here, 1), put(cache.positions, own, 1)
    return model.backbone.ln_f(x[:, -1]), Cache(past, mask, positions, cache.next + 1, state)


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
