"""What one segment looks like inside the layers: [read memory; task prompt; text; write memory].

`join` places the parts and says what each place may see; `pack` moves all padding to the end for
the time that the layers run, where a fused attention kernel then needs no mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models.backbones import Backbone
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.ops.positions import gather_positions, permute_positions


class Part(NamedTuple):
    """A stretch of the model's input: embeddings [B, n, D] and mask bool[B, n]."""

    embedded: jax.Array
    mask: jax.Array
    is_text: bool = False  # prompt or text, and no memory tokens
    positions: jax.Array | None = None  # own rows of the position table (`wrap_pos`)


class PackingOrder(NamedTuple):
    """i32[..., N] twice: the places with all padding at the end, and where each place went."""

    order: jax.Array
    inverse: jax.Array


def join(
    backbone: Backbone,
    parts: list[Part],
    read_tokens: int,
    write_tokens: int,
    joint_writing: bool = False,
) -> tuple[jax.Array, AttentionContext]:
    """The input of the first layer [B, N, D], positions added, and its context."""
    mask = jnp.concatenate([part.mask for part in parts], axis=1)
    positions = count_positions(mask)
    placed, sections, start = [], [], 0
    for part in parts:
        stop = start + part.embedded.shape[1]
        own = positions[:, start:stop] if part.positions is None else part.positions
        placed.append(part.embedded + backbone.position_embedding(own))
        if part.is_text:
            sections.append((start, stop))
        start = stop
    sizes = (tuple(sections), read_tokens, write_tokens)
    context = make_context(backbone, mask, *sizes, causal=not joint_writing)
    return jnp.concatenate(placed, axis=1), context


def make_context(
    backbone: Backbone,
    mask: jax.Array,
    sections: tuple[tuple[int, int], ...],
    read_tokens: int,
    write_tokens: int,
    packed: bool = False,
    causal: bool = True,
) -> AttentionContext:
    """What a segment with mask bool[B, N] may see: everything real that is not behind it; write
    memory all of itself too, where it is not `causal`."""
    positions, places = count_positions(mask), mask.shape[1]
    seen = jnp.tril(jnp.ones((places, places), bool))
    place = jnp.arange(places)
    if not causal:
        written = place >= places - write_tokens
        seen |= written[:, None] & written[None]
    text = (place >= read_tokens) & (place < places - write_tokens)
    data = backbone.position_data(positions, positions, text[:, None] & text[None])
    visible = seen & mask[:, None, :]
    return AttentionContext(
        positions, mask, visible, data, sections, read_tokens, write_tokens, packed, causal
    )


def count_positions(mask: jax.Array) -> jax.Array:
    """Positions i32[B, N]: real tokens in front; padding counts for nothing.

    The barrier has them stored. On a GPU XLA counted anew for every column of the input that it
    placed by them: half of the time on the diagonal schedule (benchmarks/H200.md).
    """
    count = jnp.cumsum(jnp.asarray(mask), axis=1, dtype=jnp.int32)
    return jnp.maximum(jax.lax.optimization_barrier(count) - 1, 0)


def packing_order(mask: jax.Array) -> PackingOrder:
    """Of bool[..., N]."""
    order = jnp.argsort(~mask, axis=-1, stable=True)
    return PackingOrder(order, jnp.argsort(order, axis=-1))


def pack(
    backbone: Backbone, x: jax.Array, context: AttentionContext, order: PackingOrder
) -> tuple[jax.Array, AttentionContext]:
    """x [B, N, D] with all padding at the end, and its context."""
    mask = gather_positions(context.mask, order.order)
    sizes = (context.sections, context.read_tokens, context.write_tokens)
    return permute_positions(x, *order), make_context(backbone, mask, *sizes, packed=True)


def unpack(x: jax.Array, order: PackingOrder) -> jax.Array:
    """The inverse of `pack` on x [B, N, D]."""
    return permute_positions(x, order.inverse, order.order)
