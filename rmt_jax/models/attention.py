"""Attention, in one function, in one place; and the two ways without a position table.

A plain einsum: on a CPU it is as fast as anything; a backend that has better is chosen here.
"""

import jax
import jax.numpy as jnp

# Finite, so that a query that may see nothing (padding) gives numbers and not NaN.
HIDDEN = -1e30


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention; scores and softmax in float32 whatever the inputs are.

    queries [B, N, H, d]; keys, values [B, K, H, d]; visible bool[B, N, K]; bias f32[B, H, N, K]
    is added to the scores. Returns [B, N, H, d] in the dtype of `values`.
    """
    scores = jnp.einsum("bnhd,bkhd->bhnk", queries, keys, preferred_element_type=jnp.float32) * (
        queries.shape[-1] ** -0.5
    )
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(visible[:, None], scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bhnk,bkhd->bnhd", weights, values)


def alibi(
    heads: int, query_positions: jax.Array, key_positions: jax.Array, counted: jax.Array
) -> jax.Array:
    """Bias of ALiBi (Press et al. 2022): minus slope times distance; slopes 2^(-8 (h+1) / H).

    Positions i32[B, N] and i32[B, K]; counted bool[N, K] is False between places that have no
    distance: memory tokens stand near everything, else a long segment would hide the read memory
    from its last tokens, and its first tokens from the write memory. Returns f32[B, H, N, K].
    """
    slopes = 2.0 ** (-8.0 * (jnp.arange(heads) + 1) / heads)
    distance = (query_positions[:, :, None] - key_positions[:, None, :]) * counted
    return -slopes[None, :, None, None] * distance[:, None].astype(jnp.float32)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, halves as in GPT-NeoX, base 10,000).

    x [B, N, H, d] with d even; positions i32[B, N].
    """
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
