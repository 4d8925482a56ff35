"""Associative matrices per layer (Rodkin et al. 2024), exact to the authors' code."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import setting
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.cells import (
    CELLS,
    Memory,
    MemoryCell,
    TheirConfig,
    new_memory_tokens,
    relative_change,
    repeat_for_texts,
)
from rmt_jax.models.cells.rmt import segment_sizes
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.ops.associative import EPSILON, THEIR_NAMES, Associations, AssociativeMaps
from rmt_jax.models.ops.block import matmul
from rmt_jax.types import WeightInfo

NU = 3  # where nothing says otherwise: the authors'
TINY = 1e-12  # the least length that a key is divided by


@dataclass(frozen=True)
class ARMTOptions:
    """model.cell_options."""

    correction: bool = setting(True, "Keys that are known already add less to the normaliser.")
    unit_keys: bool = setting(
        False, "Keys and queries have length 1, as in the authors' code from 2025 on."
    )
    joint_writing: bool = setting(
        False, "Memory tokens of a segment see each other, as in the authors' inner loop."
    )


@CELLS.register("armt")
class ARMT(MemoryCell):
    """Memory tokens stand at the end only, the same in every segment, and write what they have
    gathered into the layer's matrix; every place reads it. K = 2 · nu · d_mem rows.

    State: `Associations`, both parts zero at the start.
    """

    Options = ARMTOptions
    writes = layerwise = prefers_diagonal = True
    not_diagonal = ""
    state_row_label = "layer's associations"
    theirs = {"memory_cell.memory": "tokens"}
    scaled_by_embedding = frozenset({"memory/tokens"})
    their_layer = THEIR_NAMES
    their_block = "layer."
    saves_layers_twice = True
    their_config = TheirConfig(
        model_type="armt",
        required={
            "n_heads": 1, "gating": False, "act_on": False, "use_denom": True, "wrap_pos": False,
            "sliding_window": False, "use_sink": False, "attend_to_previous_input": False,
        },
        classes={
            "ARMTForCausalLM": {"unit_keys": True, "joint_writing": False},
            "InnerLoopARMTForCausalLM": {"unit_keys": True, "joint_writing": True},
        },
    )  # fmt: skip

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config, backbone, rngs)
        options: ARMTOptions = self.options(config)
        self.correction, self.unit_keys = options.correction, options.unit_keys
        self.joint_writing = options.joint_writing
        self.keys = 2 * config.nu * config.d_mem
        self.tokens = new_memory_tokens((config.memory_tokens, config.width), backbone, rngs)
        self.layers = AssociativeMaps(config, rngs)

    def initial_state(self, batch: int) -> Associations:
        layers, width = self.layers.value.shape[:2]
        shape = (layers, batch, self.keys)
        return Associations(jnp.zeros((*shape, width)), jnp.zeros(shape))

    def token_embeddings(self, memory: Memory) -> jax.Array:
        return repeat_for_texts(self.tokens[...], memory.started.shape[0])

    def before_layer(
        self, layer: Any, x: jax.Array, state: Associations, context: AttentionContext
    ) -> jax.Array:
        maps = layer.weights
        query = self._features(maps, matmul(x, maps.query[...].astype(x.dtype)))
        return x + recall(state, query).astype(x.dtype)

    def after_layer(
        self,
        layer: Any,
        x: jax.Array,
        state: Associations,
        started: jax.Array,
        context: AttentionContext,
    ) -> Associations:
        """All M tokens write against the old matrix and the old norm."""
        if not context.write_tokens:
            return state
        maps, tokens = layer.weights, context.write_memory(x)
        key = self._features(maps, matmul(tokens, maps.key[...].astype(x.dtype)))
        value = matmul(tokens, maps.value[...].astype(x.dtype)).astype(jnp.float32)
        strength = tokens.astype(jnp.float32) @ maps.beta[...] + maps.beta_bias[...]
        known = started[:, None]
        old = jnp.where(known[:, :, None], recall(state, key), 0)
        overlap = jnp.einsum("bk,bmk->bm", state.norm, key) + EPSILON
        size = jnp.square(key).sum(axis=-1) + (0 if self.unit_keys else EPSILON)
        news = jnp.clip(1 - overlap / size, 0, 1) if self.correction else jnp.ones_like(overlap)
        gamma = jax.lax.stop_gradient(jnp.where(known, news, 1))
        written = jax.nn.sigmoid(strength) * (value - old)
        return Associations(
            state.matrix + jnp.einsum("bmk,bmd->bkd", key, written),
            state.norm + jnp.einsum("bm,bmk->bk", gamma, key),
        )

    def _features(self, maps: AssociativeMaps, x: jax.Array) -> jax.Array:
        """Keys or queries f32[..., K] of [..., d_mem]."""
        found = maps.features(x)
        if not self.unit_keys:
            return found
        # Not of the root, whose slope has no bound at zero.
        size = jnp.square(found).sum(axis=-1, keepdims=True)
        return found * jax.lax.rsqrt(jnp.maximum(size, TINY**2))

    def state_change(self, old: Associations, new: Associations) -> np.ndarray:
        return matrix_change(old, new)

    @classmethod
    def describe(cls, config: settings.Model) -> str:
        return f"{super().describe(config)}, d_mem {config.d_mem}, nu {config.nu}"

    def weights(self) -> dict[str, WeightInfo]:
        maps = {f"layers/{name}": info for name, info in self.layers.weights().items()}
        return {"tokens": WeightInfo((None, None), exact=True)} | maps

    @classmethod
    def layer_flops(cls, config: settings.Model, places: int) -> float:
        m, tokens, keys = config, config.memory_tokens, 2 * config.nu * config.d_mem
        flops = 2.0 * places * m.width * m.d_mem + 2.0 * places * keys * (m.width + 1)  # recall
        flops += 2.0 * tokens * m.width * (m.d_mem + m.width + 1)  # key, value, beta
        flops += 2.0 * tokens * keys * (m.width + 1)  # what is known already
        return flops + 2.0 * tokens * keys * (m.width + 1)  # the new matrix and norm

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        m, keys = config, 2 * config.nu * config.d_mem
        weights = (2.0 * m.width * m.d_mem + m.width**2) * size
        # Features; the matrix is read twice and written once.
        return weights + 4.0 * batch * (2.0 * places * keys + 3.0 * keys * m.width)

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        return {"tokens", "layers/query"} <= set(weights)

    @classmethod
    def sizes_of(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], list[str]]:
        sizes, guessed = segment_sizes(said, weights["tokens"])
        sizes |= {"d_mem": weights["layers/query"].shape[-1], "nu": int(said.get("nu") or NU)}
        names = (field.name for field in fields(ARMTOptions))
        sizes["cell_options"] = {n: bool(said[n]) for n in names if said.get(n) is not None}
        return sizes, guessed + ([] if said.get("nu") else [f"nu {NU} (the authors')"])


def recall(state: Associations, query: jax.Array) -> jax.Array:
    """(q A) / (z q + 1e-5): f32[B, n, D] of query f32[B, n, K]. Zero while nothing is stored."""
    found = jnp.einsum("bnk,bkd->bnd", query, state.matrix)
    weight = jnp.einsum("bnk,bk->bn", query, state.norm) + EPSILON
    return found / weight[..., None]


def matrix_change(old: Associations, new: Associations) -> np.ndarray:
    """How far each layer's matrix moved, relative to its size: f32[layers]."""
    a, b = (np.asarray(x.matrix).reshape(x.matrix.shape[0], -1) for x in (old, new))
    return relative_change(a, b)
