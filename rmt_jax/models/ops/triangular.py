"""The inverse of unit lower triangular matrices, by batched products alone."""

import jax
import jax.numpy as jnp

BLOCK = 8  # a power of two; the greatest entry of a power of a block of ones is 35


def unit_lower_inverse(lower: jax.Array) -> jax.Array:
    """(1 + lower)^-1 [B, n, n] for strictly lower triangles [B, n, n].

    The inverses of all blocks on the diagonal at once, a block's being (1 - L)(1 + L²)(1 + L⁴);
    then of blocks twice as large, from [[a, 0], [c, d]] to [[a⁻¹, 0], [-d⁻¹ c a⁻¹, d⁻¹]]. These are
    a few batched products, where substitution makes six for every BLOCK tokens, one after another.

    Not LAPACK's `solve_triangular`: with several CPU devices in a process it never returned.
    """
    batch, places = len(lower), lower.shape[1]
    size = BLOCK
    while size < places:
        size *= 2
    lower = jnp.pad(lower, ((0, 0), (0, size - places), (0, size - places)))

    def diagonal(step: int) -> jax.Array:
        """Blocks [B, n / step, step, step] on the diagonal."""
        count = size // step
        tiles = lower.reshape(batch, count, step, count, step)
        return jnp.stack([tiles[:, i, :, i] for i in range(count)], axis=1)

    power = -diagonal(BLOCK)
    inverse, reach = jnp.eye(BLOCK) + power, 2
    while reach < BLOCK:
        power = power @ power
        inverse, reach = inverse + inverse @ power, 2 * reach
    step = BLOCK
    while step < size:
        first, second = inverse[:, ::2], inverse[:, 1::2]
        corner = -(second @ diagonal(2 * step)[:, :, step:, :step] @ first)
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=3)
        inverse = jnp.concatenate([above, jnp.concatenate([corner, second], axis=3)], axis=2)
        step *= 2
    return inverse[:, 0, :places, :places]


def inverse_flops(size: int) -> float:
    """FLOPs of `unit_lower_inverse` for one triangle of `size` tokens: powers of the blocks on its
    diagonal, then two products for each pair of blocks at every doubling."""
    flops, step = 0.0, BLOCK
    while step < size:
        flops, step = flops + 2.0 * step**2, 2 * step
    return step * (flops + 4.0 * BLOCK**2 * ((BLOCK - 1).bit_length() - 1))
