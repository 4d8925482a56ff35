"""Memory tokens that each layer keeps for itself: parallel RMT."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.cells import CELLS, Memory, MemoryCell
from rmt_jax.models.cells.rmt import segment_sizes
from rmt_jax.models.context import AttentionContext
from rmt_jax.types import WeightInfo


@CELLS.register("prmt")
class PRMT(MemoryCell):
    """Each layer owns M memory vectors; a layer's last M outputs are its state, which overwrites
    the first and last M places of its next input (Sivtsov et al. 2025).

    State: f32[layers, B, M, D].
    """

    reads = writes = layerwise = True
    not_diagonal = ""
    their_layer = {"memory": "tokens"}  # a layout of our own

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config, backbone, rngs)
        shape = (config.layers, config.memory_tokens, config.width)
        self.tokens = nnx.Param(jax.random.normal(rngs.params(), shape))

    def initial_state(self, batch: int) -> jax.Array:
        layers, tokens, width = self.tokens.shape
        return jnp.broadcast_to(self.tokens[...][:, None], (layers, batch, tokens, width))

    def token_embeddings(self, memory: Memory) -> jax.Array:
        return jnp.zeros_like(memory.state[0])  # each layer overwrites these places

    def before_layer(
        self, layer: Any, x: jax.Array, state: jax.Array, context: AttentionContext
    ) -> jax.Array:
        if context.read_tokens:
            x = x.at[:, : context.read_tokens].set(state.astype(x.dtype))
        if context.write_tokens:
            x = context.set_write_memory(x, state.astype(x.dtype))
        return x

    def after_layer(
        self,
        layer: Any,
        x: jax.Array,
        state: jax.Array,
        started: jax.Array,
        context: AttentionContext,
    ) -> jax.Array:
        return context.write_memory(x).astype(state.dtype) if context.write_tokens else state

    def weights(self) -> dict[str, WeightInfo]:
        return {"tokens": WeightInfo(("layers", None, None), exact=True)}

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        return set(weights) == {"tokens"} and weights["tokens"].ndim == 3

    @classmethod
    def sizes_of(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], list[str]]:
        return segment_sizes(said, weights["tokens"])
