"""Memory tokens through the whole depth (Bulatov, Kuratov, Burtsev 2022): the paper's memory."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.cells import (
    CELLS,
    Memory,
    MemoryCell,
    new_memory_tokens,
    repeat_for_texts,
)
from rmt_jax.types import WeightInfo

SEGMENT = 512  # tokens, where nothing says otherwise: the authors'


@CELLS.register("rmt")
class RMT(MemoryCell):
    """M tokens stand in front of the text and behind it. What the last layer makes of those behind,
    after the final norm, are the tokens of the next segment. State: f32[B, M, D]."""

    reads = writes = True
    not_diagonal = "its last layer's output of one segment is the first layer's input of the next"
    theirs = {"memory_cell.memory": "tokens"}
    scaled_by_embedding = frozenset({"memory/tokens"})

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config, backbone, rngs)
        self.tokens = new_memory_tokens((config.memory_tokens, config.width), backbone, rngs)

    def initial_state(self, batch: int) -> jax.Array:
        return repeat_for_texts(self.tokens[...], batch)

    def token_embeddings(self, memory: Memory) -> jax.Array:
        return memory.state

    def next_state(
        self, state: Any, x: jax.Array, memory_places: int, backbone: Backbone
    ) -> jax.Array:
        return backbone.final_norm(x[:, -memory_places:])

    def weights(self) -> dict[str, WeightInfo]:
        return {"tokens": WeightInfo((None, None), exact=True)}

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        return set(weights) == {"tokens"} and weights["tokens"].ndim == 2

    @classmethod
    def sizes_of(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], list[str]]:
        return segment_sizes(said, weights["tokens"])


def segment_sizes(said: Mapping[str, Any], tokens: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """M and L of memory tokens [..., M, D], of which config.json may say the second."""
    segment = said.get("segment_size")
    guessed = [] if segment else [f"segment_size {SEGMENT} (the authors')"]
    sizes = {"memory_tokens": tokens.shape[-2], "segment_tokens": int(segment or SEGMENT)}
    return sizes, guessed
