"""A backbone from outside the package: causal averages in place of attention, and no LayerNorm."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax.models.backbones import BACKBONES, Backbone, Block
from rmt_jax.models.context import KVCache, NormedInput
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.types import WeightInfo


@dataclass(frozen=True)
class Options:
    """Settings of its own: config.model.backbone_options."""

    sharpness: float = 4.0


class AveragingBlock(Block):
    def __init__(self, config, sharpness, rngs):
        shape = (config.layers, config.width, config.width)
        scale = config.width**-0.5
        self.sharpness = sharpness
        self.inward = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.outward = nnx.Param(scale * jax.random.normal(rngs.params(), shape))

    def normed_input(self, x, context, cache=None):
        return x, NormedInput(jax.nn.soft_sign(x))

    def __call__(self, x, context, cache=None, query_positions=None, normed_input=None):
        if normed_input is None:
            x, normed_input = self.normed_input(x, context, cache)
        values = normed_input.normed @ self.inward[...].astype(x.dtype)
        keys = self.sharpness * jnp.tanh(values[..., :1])  # how much a place counts
        kept, visible = KVCache(keys, values), context.visible
        if cache is not None:
            keys = jnp.concatenate([cache.keys, keys], axis=1)
            values = jnp.concatenate([cache.values, values], axis=1)
        if query_positions is not None:
            x, visible = (gather_positions(a, query_positions) for a in (x, visible))
        scores = jnp.where(visible, keys[:, None, :, 0], -1e30)
        mixed = jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values
        return x + jnp.tanh(mixed) @ self.outward[...].astype(x.dtype), kept


@BACKBONES.register("averaging")
class Averaging(Backbone):
    embedding = "table"
    Options = Options

    def __init__(self, config, vocab, position_rows, rngs):
        super().__init__(config)
        noise = jax.random.normal(rngs.params(), (vocab, config.width))
        self.table = nnx.Param(0.1 * noise)
        self.blocks = AveragingBlock(config, self.options(config).sharpness, rngs)
        self.gain = nnx.Param(jnp.ones(config.width))

    def position_embedding(self, positions):
        waves = 0.1 ** (jnp.arange(self.width) / self.width)
        return (0.1 * jnp.sin(positions[..., None] * waves)).astype(self.dtype)

    def final_norm(self, x):
        return (jax.nn.soft_sign(x) * self.gain[...]).astype(x.dtype)

    def weights(self):
        matrix = WeightInfo(("layers", "embed", "heads"), "matrix")
        return self.table_weights() | {
            "blocks/inward": matrix,
            "blocks/outward": matrix,
            "gain": WeightInfo((None,), exact=True),
        }

    @classmethod
    def layer_flops(cls, config, places, memory, wanted, causal):
        mixing = wanted * 2.0 * config.width * places * (0.5 if causal else 1)
        return 2.0 * config.width**2 * (places + wanted) + mixing

    @classmethod
    def layer_bytes(cls, config, batch, places, size):
        return 2.0 * batch * places * (4 * config.width + places) * size
