"""RMSNorm (Zhang and Sennrich 2019)."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32; the result has the dtype of x.

    scale: of `shape` [..., D], for stacked layers [layers, D].
    """

    def __init__(self, shape: tuple[int, ...], epsilon: float):
        self.scale, self.epsilon = nnx.Param(jnp.ones(shape)), epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        exact = x.astype(jnp.float32)
        slope = jax.lax.rsqrt(jnp.square(exact).mean(axis=-1, keepdims=True) + self.epsilon)
        return (exact * slope * self.scale[...]).astype(x.dtype)
