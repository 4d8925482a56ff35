"""LayerNorm (Ba et al. 2016) with a bias."""

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax.models.ops.block import layer_norm


class LayerNorm(nnx.Module):
    """Statistics in float32; the result has the dtype of the input."""

    def __init__(self, shape: tuple[int, ...]):
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...])
