"""Picking and reordering places of a segment, with gradients that go straight back."""

from typing import Any

import jax
import jax.numpy as jnp

from rmt_jax.models import platform


def gather_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [B, N, ...] at positions i32[B, n] -> [B, n, ...]."""
    return jax.vmap(lambda row, index: row[index])(x, positions)


def gather_tree(tree: Any, positions: jax.Array | None) -> Any:
    """`gather_positions` of every array of a tree; None: all places, as they stand."""
    if positions is None:
        return tree
    return jax.tree.map(lambda x: gather_positions(x, positions), tree)


@jax.custom_vjp
def permute_positions(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """`gather_positions` at all places in another order, i32[B, N] with its inverse. Its gradient
    is a gather too, where that of `gather_positions` is a scatter that adds."""
    return gather_positions(x, order)


def _permute_forward(x: jax.Array, order: jax.Array, inverse: jax.Array):
    return gather_positions(x, order), inverse


def _permute_backward(inverse: jax.Array, gradient: jax.Array):
    return gather_positions(gradient, inverse), None, None


permute_positions.defvjp(_permute_forward, _permute_backward)


def embedding_lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """table [R, D] at i32[...] -> [..., D]; for a table of a few thousand rows that many look at.

    On a GPU its gradient is a product with ones and zeros: a thousand places that add to the same
    row, as all texts do to the table of positions, wait for each other.
    """
    return _lookup(table, index) if platform.current() == "gpu" else table[index]


@jax.custom_vjp
def _lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    return table[index]


def _lookup_forward(table: jax.Array, index: jax.Array):
    return table[index], (index, len(table))


def _lookup_backward(kept: tuple[jax.Array, int], gradient: jax.Array):
    index, count = kept
    chosen = jax.nn.one_hot(index.reshape(-1), count, axis=0, dtype=gradient.dtype)
    return chosen @ gradient.reshape(index.size, -1), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def cast_fp32_grad(weight: jax.Array, cast: jax.Array) -> jax.Array:
    """`cast`, which is `weight` in another dtype, with the gradient going to `weight` in its own:
    a weight is cast once before a loop, and its gradients still add up in float32."""
    return cast


cast_fp32_grad.defvjp(
    lambda weight, cast: (cast, jnp.zeros((), weight.dtype)),
    lambda kept, gradient: (gradient.astype(kept.dtype), None),
)
