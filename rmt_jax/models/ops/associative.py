"""The maps and the state of an associative memory: a matrix per layer that keys and values make."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.types import WeightInfo

# The authors' names in a layer, (out, in), and ours.
THEIR_NAMES = {
    "W_mq.weight": "layers/query",
    "W_mk.weight": "layers/key",
    "W_mv.weight": "layers/value",
    "W_mb.weight": "layers/beta",
    "W_mb.bias": "layers/beta_bias",
}
EPSILON = 1e-5  # beside every division by a normaliser, as in the authors' code


class Associations(NamedTuple):
    """The associative memory of every layer (first axis; absent inside a layer)."""

    matrix: jax.Array  # f32[layers, B, K, D]  A: sum of key ⊗ value
    norm: Any = ()  # ARMT: f32[layers, B, K]  z: sum of keys


class AssociativeMaps(nnx.Module):
    """The maps around a layer's associative memory, stacked; weights drawn as torch's Linear."""

    def __init__(self, config: settings.Model, rngs: nnx.Rngs):
        layers, width, keys = config.layers, config.width, config.d_mem
        bound = width**-0.5

        def uniform(*shape):
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.nu = config.nu
        self.query = uniform(layers, width, keys)
        self.key = uniform(layers, width, keys)
        self.value = nnx.Param(jnp.zeros((layers, width, width)))
        self.beta = uniform(layers, width, 1)
        self.beta_bias = uniform(layers, 1)

    def features(self, x: jax.Array) -> jax.Array:
        """DPFP-nu (Schlag et al. 2021), f32[..., 2 d nu] of [..., d]: products of rolled halves."""
        x = x.astype(jnp.float32)
        r = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)
        rolled = [r * jnp.roll(r, j, axis=-1) for j in range(1, self.nu + 1)]
        return jnp.concatenate(rolled, axis=-1)

    def weights(self) -> dict[str, WeightInfo]:
        keys = WeightInfo(("layers", "embed", "memory_keys"), "matrix")
        return {
            "query": keys,
            "key": keys,
            "value": WeightInfo(("layers", "embed", "memory_values"), "matrix"),
            "beta": WeightInfo(("layers", None, None), exact=True),
            "beta_bias": WeightInfo(("layers", None), exact=True),
        }
