"""A matrix per layer that every token reads and may write, by the delta rule (Yang et al. 2024)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError
from rmt_jax.models import platform
from rmt_jax.models.backbones import Backbone, Block
from rmt_jax.models.cells import CELLS, Memory, MemoryCell
from rmt_jax.models.cells.armt import matrix_change
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.ops.associative import EPSILON, THEIR_NAMES, Associations, AssociativeMaps
from rmt_jax.models.ops.block import matmul
from rmt_jax.models.ops.triangular import inverse_flops, unit_lower_inverse
from rmt_jax.types import Prompt, Segment, WeightInfo

# Tokens of one triangular system: all of a segment, where it has no more. On a CPU the rule and its
# gradient take three quarters of the time with 64 tokens at once that they take with 32, with 96 as
# long as with three times 32; an accelerator waits for each of many small programs.
CHUNK = 128
# Gates start almost closed, or background would overwrite everything before they have learned.
CLOSED = 1.5


@CELLS.register("delta")
class Delta(MemoryCell):
    """Gated delta rule; there are no memory tokens.

    A token's key, value, query and gate come from the layer's normed input. The gate lets the
    value replace what the matrix held under that key; keys and queries have length 1. A token reads
    what was written before it, in earlier segments and in its own: attention sees one segment, the
    matrix the whole text. A closed gate leaves the matrix as it was, bit for bit, so background can
    go on for ever, where ARMT's normaliser grows with whatever is written; and no write can make
    the matrix grow beyond its values. A prompt reads and never writes.

    State: `Associations` of K = d_mem rows, zero at the start.
    """

    layerwise = True
    not_diagonal = ""
    reorders = False  # the rule goes through the text in order, where the text stands
    state_row_label = "layer's associations"
    view_labels = ("layer", "write gate")
    has_gates = True
    gate_weights = ("beta", "beta_bias")
    their_layer = THEIR_NAMES
    their_block = "layer."
    in_pytorch = False

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config, backbone, rngs)
        self.keys, self.thresholds = config.d_mem, thresholds(config)
        maps = self.layers = AssociativeMaps(config, rngs)
        # A word finds what was written under the same word from the first step on.
        maps.query[...] = jnp.copy(maps.key[...])  # an array of its own can be donated
        maps.beta_bias[...] -= CLOSED

    def initial_state(self, batch: int) -> Associations:
        layers, width = self.layers.value.shape[:2]
        return Associations(jnp.zeros((layers, batch, self.keys, width)))

    def layer(
        self,
        block: Block,
        layer: Any,
        x: jax.Array,
        state: Associations,
        started: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, Associations, KVCache]:
        x, normed_input = block.normed_input(x, context, cache)
        threshold = layer.constants.get("threshold")
        # On other platforms the two branches were not measured.
        skip = self.only_reads and platform.current() == "cpu"
        found, matrix = delta_rule(
            layer.weights, normed_input.normed, state.matrix, context, threshold, skip
        )
        x, kept = block(x + found, context, cache, query_positions, normed_input)
        return x, Associations(matrix), kept

    def layer_constants(self) -> dict[str, jax.Array]:
        if not any(self.thresholds):
            return {}
        return {"threshold": jnp.array(self.thresholds, jnp.float32)}

    def gate(self, x: jax.Array) -> jax.Array:
        return gate(x)

    def gate_inputs(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None, depth: int
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        x, context = model.enter(memory, segment, prompt)
        outputs, given = [], []
        for number in range(depth):
            block, layer, state = model.layer_at(number, memory)
            _, normed_input = block.normed_input(x, context)
            given.append(_gate_inputs(layer.weights, normed_input.normed, context)[..., 0])
            if number < depth - 1:
                x, _, _ = self.layer(block, layer, x, state, memory.started, context)
                outputs.append(x)
        return outputs, given

    def openings(self, given: list[jax.Array]) -> jax.Array:
        floor = jnp.array(self.thresholds[: len(given)], jnp.float32)
        return jnp.clip(gate(jnp.stack(given), floor[:, None, None]), 0, 1)

    def inspect_segment(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None
    ) -> jax.Array:
        """How far each token of the text opens its gate in each layer."""
        given = self.gate_inputs(model, memory, segment, prompt, model.backbone.layers)[1]
        return jnp.where(jnp.asarray(segment.mask), self.openings(given)[:, 0], 0)

    def state_change(self, old: Associations, new: Associations) -> np.ndarray:
        return matrix_change(old, new)

    @classmethod
    def check(cls, config: settings.Model) -> None:
        if len(config.gate_threshold) not in (0, 1, config.layers):
            raise ConfigError(
                f"model.gate_threshold has {len(config.gate_threshold)} numbers for"
                f" {config.layers} layers: give one for each, one for all, or none."
            )

    @classmethod
    def describe(cls, config: settings.Model) -> str:
        return f"a matrix of {config.d_mem} rows per layer"

    def weights(self) -> dict[str, WeightInfo]:
        return {f"layers/{name}": info for name, info in self.layers.weights().items()}

    @classmethod
    def layer_flops(cls, config: settings.Model, places: int) -> float:
        width, text, keys = config.width, config.segment_tokens, config.d_mem
        size = min(CHUNK, text)
        flops = 2.0 * places * width * keys * 2  # query, recall
        flops += 2.0 * text * width * (keys + width + 1)  # key, value, beta
        flops += 2.0 * text * keys * width * 2  # what is known already, the new matrix
        # Alike, nearer, and two products with the tokens' values; then the system itself.
        flops += 2.0 * text * size * (2 * keys + 2 * width)
        return flops + -(-text // size) * inverse_flops(size)

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        width, text, keys = config.width, config.segment_tokens, config.d_mem
        moved = (2.0 * width * keys + width**2) * size
        moved += 4.0 * batch * (2.0 * (places + text) * keys + 4.0 * text * width)  # q, k; v, o
        # The matrix is read twice and written once per chunk.
        return moved + 4.0 * batch * 3.0 * keys * width * -(-text // min(CHUNK, text))

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        return False  # nobody else has it: our own files say so


def thresholds(config: settings.Model) -> tuple[float, ...]:
    """`gate_threshold` of every layer."""
    given = config.gate_threshold or (0.0,)
    return given * config.layers if len(given) == 1 else given


def gate(x: jax.Array, threshold: jax.Array | float | None = None) -> jax.Array:
    """A sigmoid stretched from (0, 1) to (-0.1, 1.1) and cut: 0 and 1 can be reached (Louizos et
    al. 2018), and what would open less than `threshold` stays shut: over a million tokens gates
    that open a little do the harm. Its slope is that of the sigmoid also where it is cut, or a gate
    that has closed everywhere would stay closed."""
    stretched = 1.2 * jax.nn.sigmoid(x) - 0.1
    opened = jnp.clip(stretched, 0, 1)
    if threshold is not None:
        opened = jnp.where(opened < threshold, 0, opened)
    return stretched + jax.lax.stop_gradient(opened - stretched)


def _gates(
    maps: AssociativeMaps, x: jax.Array, context: AttentionContext, threshold: jax.Array | None
) -> jax.Array:
    """How far each token of the text opens its gate, f32[B, L, 1] of the normed input x [B, N, D];
    0 for padding."""
    start, stop = context.text
    opened = gate(_gate_inputs(maps, x, context), threshold)
    return jnp.where(context.mask[:, start:stop, None], opened, 0)


def _gate_inputs(maps: AssociativeMaps, x: jax.Array, context: AttentionContext) -> jax.Array:
    start, stop = context.text
    return x[:, start:stop].astype(jnp.float32) @ maps.beta[...] + maps.beta_bias[...]


def delta_rule(
    maps: AssociativeMaps,
    x: jax.Array,
    matrix: jax.Array,
    context: AttentionContext,
    threshold: jax.Array | None = None,
    skip: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """What every place finds in the matrix, [B, N, D] of the normed input x, and the matrix
    f32[B, K, D] after the text. skip: make keys and values only where a gate of the batch opens, in
    a branch of its own: in novels few segments have one (the same numbers; without gradient).

    The rule goes token by token, M_t = M_{t-1} + g k (v - k M_{t-1}) and o_t = q M_{t-1}. A chunk
    of tokens is written at once: each sees what those before it in the chunk write under keys like
    its own, a triangular system (Yang et al. 2024, section 3).
    """
    start, stop = context.text
    text, gates = x[:, start:stop], _gates(maps, x, context, threshold)
    query = _unit(matmul(x, maps.query[...].astype(x.dtype)).astype(jnp.float32))
    before = jnp.einsum("bnk,bkd->bnd", query[:, :start], matrix)

    def write(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _written(maps, text, query[:, start:], gates, matrix)

    def pass_by(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.einsum("bmk,bkd->bmd", query[:, start:], matrix), matrix

    if skip:
        found, matrix = jax.lax.cond(jnp.any(gates > 0), write, pass_by, matrix)
    else:
        found, matrix = write(matrix)
    return jnp.concatenate([before, found], axis=1).astype(x.dtype), matrix


def _written(
    maps: AssociativeMaps, text: jax.Array, query: jax.Array, gates: jax.Array, matrix: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the text's L places find, f32[B, L, D], and the matrix after them."""
    key = _unit(matmul(text, maps.key[...].astype(text.dtype)).astype(jnp.float32))
    value = matmul(text, maps.value[...].astype(text.dtype)).astype(jnp.float32)
    places = text.shape[1]
    size = min(CHUNK, places)
    count = -(-places // size)

    def chunks(a: jax.Array) -> jax.Array:
        """[B, L, n] -> [count, B, size, n]; behind the end stand closed gates."""
        a = jnp.pad(a, ((0, 0), (0, count * size - places), (0, 0)))
        return a.reshape(len(a), count, size, a.shape[2]).swapaxes(0, 1)

    def body(matrix, chunk):
        query, key, value, opened = chunk
        news = opened * (value - jnp.einsum("bmk,bkd->bmd", key, matrix))
        alike = opened * jnp.tril(jnp.einsum("bmk,bnk->bmn", key, key), -1)
        written = unit_lower_inverse(alike) @ news
        nearer = jnp.tril(jnp.einsum("bmk,bnk->bmn", query, key), -1)
        found = jnp.einsum("bmk,bkd->bmd", query, matrix)
        found += jnp.einsum("bmn,bnd->bmd", nearer, written)
        return matrix + jnp.einsum("bmk,bmd->bkd", key, written), found

    each = (query, key, value, gates)
    matrix, found = jax.lax.scan(body, matrix, jax.tree.map(chunks, each))
    return found.swapaxes(0, 1).reshape(len(text), count * size, -1)[:, :places], matrix


def _unit(x: jax.Array) -> jax.Array:
    """Each row divided by its length; a row of zeros stays one."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + EPSILON**2)
