"""GPT-2 (Radford et al. 2019), exactly, when `positions` is `learned` and `conv_width` is 0.

Every weight of the blocks is stored with the layer as its first axis, whether the layers run as one
compiled loop or unrolled: one layout for checkpoints, sharding and the diagonal schedule.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.fused import (
    after,
    beside,
    lookup,
    normalise,
    product,
    rows,
    shifted_gelu,
    spread,
    thirds,
)

STD = 0.02  # of every weight at the start, as in GPT-2


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "mask", "visible", "bias"],
    meta_fields=["sections", "reads", "writes", "packed"],
)
@dataclass(frozen=True)
class View:
    """Where the places of one segment stand and what they may see: the same for every layer."""

    positions: jax.Array  # i32[B, N]  real tokens before this place
    mask: jax.Array  # bool[B, N]  False: padding
    visible: jax.Array  # bool[B, N, K]  place n may look at key k
    bias: jax.Array | None  # f32[B, H, N, K]  ALiBi's, else None
    sections: tuple[tuple[int, int], ...]  # [start, stop) of the parts that a convolution runs over
    reads: int = 0  # places of read memory in front
    writes: int = 0  # places of write memory at the end
    packed: bool = False  # all padding stands behind everything real, and so behind write memory

    def written(self, x: jax.Array) -> jax.Array:
        """x [B, N, D] at the places of write memory, [B, M, D]."""
        return rows(x, self._ends()) if self.packed else x[:, x.shape[1] - self.writes :]

    def write(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        """x [B, N, D] with [B, M, D] at the places of write memory."""
        if not self.packed:
            return x.at[:, x.shape[1] - self.writes :].set(memory)
        return x.at[jnp.arange(len(x))[:, None], self._ends()].set(memory)

    def _ends(self) -> jax.Array:
        """The last M real places, i32[B, M]: write memory is always real, the last that is."""
        real = self.mask.sum(axis=1, dtype=jnp.int32)
        return real[:, None] - self.writes + jnp.arange(self.writes)


class Past(NamedTuple):
    """What a layer keeps of the places it has seen, to decode the next one."""

    keys: jax.Array  # [B, K, H, d]
    values: jax.Array  # [B, K, H, d]
    inputs: jax.Array  # [B, conv_width - 1, D]  last inputs of the convolution; width 0 without


class Linear(nnx.Module):
    """`layers` affine maps in one array. HF's Conv1D has the same (in, out) layout."""

    def __init__(self, layers: int, inputs: int, outputs: int, rngs: nnx.Rngs, std: float = STD):
        shape = (layers, inputs, outputs)
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((layers, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Inside a layer: kernel [inputs, outputs]; computed in the dtype of `x`."""
        y = self.linear(x)
        return y + spread(self.bias[...].astype(x.dtype), y.shape)

    def linear(self, x: jax.Array) -> jax.Array:
        """Without the bias."""
        return product(x, self.kernel[...].astype(x.dtype))


class LayerNorm(nnx.Module):
    """Statistics in float32; the result has the dtype of the input."""

    def __init__(self, shape: tuple[int, ...]):
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        return normalise(x, self.scale[...], self.bias[...])


def convolve(kernel: jax.Array, inputs: jax.Array, before: jax.Array) -> jax.Array:
    """Causal depthwise convolution as a sum of shifted copies.

    kernel [W, D], kernel[j] weighs the token j places back; inputs [B, N, D]; before [B, W - 1, D]
    is what stood in front of them. Returns [B, N, D].
    """
    width, places = kernel.shape[0], inputs.shape[1]
    padded = jnp.concatenate([before, inputs], axis=1)
    shifted = (padded[:, width - 1 - j : width - 1 - j + places] for j in range(width))
    return sum(kernel[j].astype(inputs.dtype) * x for j, x in enumerate(shifted))  # pyright: ignore


class Block(nnx.Module):
    """All blocks of the backbone, stacked; called on one layer's slice of them."""

    def __init__(self, config: settings.Model, rngs: nnx.Rngs):
        layers, width = config.layers, config.width
        residual = STD / (2 * layers) ** 0.5
        self.heads, self.rotary, self.conv_width = (
            config.heads,
            config.positions == "rotary",
            config.conv_width,
        )
        self.fused = config.attention == "auto"
        self.ln_1 = LayerNorm((layers, width))
        self.qkv = Linear(layers, width, 3 * width, rngs)
        self.out = Linear(layers, width, width, rngs, residual)
        self.ln_2 = LayerNorm((layers, width))
        self.up = Linear(layers, width, 4 * width, rngs)
        self.down = Linear(layers, 4 * width, width, rngs, residual)
        if config.conv_width:  # zero: the convolution starts as nothing
            self.conv = nnx.Param(jnp.zeros((layers, config.conv_width, width)))

    def __call__(
        self,
        x: jax.Array,
        view: View,
        past: Past | None = None,
        top: jax.Array | None = None,
        seen: tuple[jax.Array, jax.Array] | None = None,
    ):
        """x [B, N, D] -> x [B, N, D] and the `Past` of these N places (not of earlier ones).

        top i32[B, n]: x is wanted at these places only, [B, n, D]. seen: what attention shall see
        in place of `look(x)`.
        """
        batch, places, width = x.shape
        if seen is None:
            x, looked, inputs = self.look(x, view, past)
        else:
            looked, inputs = seen
        parts = thirds(self.qkv.linear(looked), self.qkv.bias[...])
        heads = (batch, places, self.heads, width // self.heads)
        queries, keys, values = (part.reshape(heads) for part in parts)
        if self.rotary:
            queries = attention.rotate(queries, view.positions)
            keys = attention.rotate(keys, view.positions)
        kept = Past(keys, values, inputs)
        if past is not None:
            keys = jnp.concatenate([past.keys, keys], axis=1)
            values = jnp.concatenate([past.values, values], axis=1)
        visible, bias = view.visible, view.bias
        if top is not None:
            x, queries, visible = rows(x, top), rows(queries, top), rows(visible, top)
            bias = None if bias is None else rows(bias.swapaxes(1, 2), top).swapaxes(1, 2)
        # With a past, or some places only, what is visible is not the causal triangle.
        whole = self.fused and past is None and top is None
        known = view.mask if whole else None
        y = attention.attend(queries, keys, values, visible, bias, known, view.packed)
        change = self.out.linear(y.reshape(*y.shape[:2], width))
        norm = self.ln_2.scale[...], self.ln_2.bias[...]
        x, normal = after(x, change, self.out.bias[...], *norm)
        x = x + self.down(shifted_gelu(self.up.linear(normal), self.up.bias[...]))
        return x, kept

    def look(
        self, x: jax.Array, view: View, past: Past | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x itself, to go on with; its attention input [B, N, D], LayerNorm and short convolution;
        and the latter's inputs to keep for `Past`.

        The convolution runs over prompt and text apart; memory tokens take no part. Padding counts
        as zeros, like what stands before a section.
        """
        x, normal = beside(x, self.ln_1.scale[...], self.ln_1.bias[...])
        batch, _, width = normal.shape
        empty = jnp.zeros((batch, max(self.conv_width - 1, 0), width), normal.dtype)
        if not self.conv_width:
            return x, normal, empty
        real = jnp.where(view.mask[:, :, None], normal, 0)
        inputs = empty
        for start, stop in view.sections:
            before = empty if past is None else past.inputs
            section = real[:, start:stop]
            share = convolve(self.conv[...], section, before)
            normal = normal.at[:, start:stop].add(share)
            inputs = jnp.concatenate([before, section], axis=1)[:, stop - start :]
        return x, normal, inputs


class Backbone(nnx.Module):
    """Embeddings, blocks, final LayerNorm and head."""

    def __init__(self, config: settings.Model, vocab: int, rows: int, rngs: nnx.Rngs):
        """`rows`: of the position table (0: none)."""
        self.unroll = 1 if config.scan_layers else config.layers
        self.dtype = compute_dtype(config.dtype)
        self.wte = nnx.Param(STD * jax.random.normal(rngs.params(), (vocab, config.width)))
        if rows:
            self.wpe = nnx.Param(STD * jax.random.normal(rngs.params(), (rows, config.width)))
        self.blocks = Block(config, rngs)
        self.ln_f = LayerNorm((config.width,))
        if not config.tied_head:
            self.head = nnx.Param(STD * jax.random.normal(rngs.params(), (vocab, config.width)))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """i32[...] -> [..., D] in the compute dtype."""
        return self.wte[...].astype(self.dtype)[tokens]

    def place(self, rows: jax.Array) -> jax.Array:
        """Rows of the position table, i32[...] -> [..., D]; zero when there is no table."""
        if not hasattr(self, "wpe"):
            return jnp.zeros((), self.dtype)
        return lookup(self.wpe[...].astype(self.dtype), rows)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D], after the final LayerNorm -> f32[..., V]. Tied to the embedding, or not."""
        table = self.head if hasattr(self, "head") else self.wte
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            table[...].astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )


def compute_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators; on a CPU XLA's bfloat16 is slower than float32."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
