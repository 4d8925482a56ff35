"""RMSNorm (Zhang and Sennrich 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale) over the last axis, in float32; the result has the dtype of x.

    scale: of `shape` [..., D], for stacked layers [layers, D]. offset: 1 in Gemma, whose scales
    begin at zero.
    """

    def __init__(self, shape: tuple[int, ...], epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(shape, 1 - offset))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        exact = x.astype(jnp.float32)
        slope = jax.lax.rsqrt(jnp.square(exact).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...]
        scale = scale + self.offset if self.offset else scale
        return (exact * slope * scale).astype(x.dtype)
