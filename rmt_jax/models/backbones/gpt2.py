"""GPT-2 (Radford et al. 2019), exactly, when `positions` is `learned` and `conv_width` is 0.

Variants: ALiBi or rotary positions in place of the table, and a short causal convolution on the
attention input of every layer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError
from rmt_jax.models.backbones import BACKBONES, Backbone, Block, HFNames, refuse_variants
from rmt_jax.models.context import AttentionContext, KVCache, NormedInput
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.convolution import causal_convolution
from rmt_jax.models.ops.draw import normal
from rmt_jax.models.ops.kernels import block_ops
from rmt_jax.models.ops.layer_norm import LayerNorm
from rmt_jax.models.ops.linear import Linear
from rmt_jax.models.ops.positions import embedding_lookup, gather_tree
from rmt_jax.models.ops.rotary import RotaryAngles, frequencies, rotary_angles, rotate
from rmt_jax.types import WeightInfo

STD = 0.02  # of every weight at the start, as in GPT-2
HEAD_WIDTH = 64  # where nothing says how many heads there are: GPT-2's

# What HF's config.json must say, where it says it: other values compute something else.
HF_REQUIRED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
LAYER_NAMES = {
    "ln_1.weight": "blocks/ln_1/scale",
    "ln_1.bias": "blocks/ln_1/bias",
    "attn.c_attn.weight": "blocks/qkv/kernel",
    "attn.c_attn.bias": "blocks/qkv/bias",
    "attn.c_proj.weight": "blocks/out/kernel",
    "attn.c_proj.bias": "blocks/out/bias",
    "ln_2.weight": "blocks/ln_2/scale",
    "ln_2.bias": "blocks/ln_2/bias",
    "mlp.c_fc.weight": "blocks/up/kernel",
    "mlp.c_fc.bias": "blocks/up/bias",
    "mlp.c_proj.weight": "blocks/down/kernel",
    "mlp.c_proj.bias": "blocks/down/bias",
    "conv.weight": "blocks/conv",  # ours alone: no such thing in GPT-2
}


class GPT2Block(Block):
    """All blocks, stacked; called on one layer's slice of them."""

    def __init__(self, config: settings.Model, rngs: nnx.Rngs):
        layers, width = config.layers, config.width
        residual = STD / (2 * layers) ** 0.5
        self.heads, self.conv_width = config.heads, config.conv_width
        self.rotary, self.fused = config.positions == "rotary", config.attention == "auto"
        self.ln_1 = LayerNorm((layers, width))
        self.qkv = Linear(layers, width, 3 * width, rngs, STD)
        self.out = Linear(layers, width, width, rngs, residual)
        self.ln_2 = LayerNorm((layers, width))
        self.up = Linear(layers, width, 4 * width, rngs, STD)
        self.down = Linear(layers, 4 * width, width, rngs, residual)
        if config.conv_width:  # zero: the convolution starts as nothing
            self.conv = nnx.Param(jnp.zeros((layers, config.conv_width, width)))

    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
        normed_input: NormedInput | None = None,
    ) -> tuple[jax.Array, KVCache]:
        if normed_input is None:
            x, normed_input = self.normed_input(x, context, cache)
        queries, keys, values = self._heads(normed_input.normed, context)
        kept = KVCache(keys, values, normed_input.last_inputs)
        bias = None if self.rotary else context.position_data
        x, queries = gather_tree((x, queries), query_positions)
        y = attention.attend_segment(
            queries, kept, context, cache, query_positions, self.fused, bias
        )
        change = self.out.linear(y.reshape(*x.shape))
        ops, norm = block_ops(x), (self.ln_2.scale[...], self.ln_2.bias[...])
        x, normed = ops.add_layer_norm(x, change, self.out.bias[...], *norm)
        return x + self.down(ops.bias_gelu(self.up.linear(normed), self.up.bias[...])), kept

    def normed_input(
        self, x: jax.Array, context: AttentionContext, cache: KVCache | None = None
    ) -> tuple[jax.Array, NormedInput]:
        """LayerNorm and short convolution. The convolution runs over prompt and text apart; memory
        tokens take no part. Padding counts as zeros, like what stands before a section."""
        x, normed = block_ops(x).prenorm(x, self.ln_1.scale[...], self.ln_1.bias[...])
        batch, _, width = normed.shape
        empty = jnp.zeros((batch, max(self.conv_width - 1, 0), width), normed.dtype)
        if not self.conv_width:
            return x, NormedInput(normed, empty)
        real = jnp.where(context.mask[:, :, None], normed, 0)
        last_inputs = empty
        for start, stop in context.sections:
            before = empty if cache is None else cache.last_inputs
            section = real[:, start:stop]
            share = causal_convolution(self.conv[...], section, before)
            normed = normed.at[:, start:stop].add(share)
            last_inputs = jnp.concatenate([before, section], axis=1)[:, stop - start :]
        return x, NormedInput(normed, last_inputs)

    def attention_weights(self, x: jax.Array, context: AttentionContext) -> jax.Array:
        queries, keys, _ = self._heads(self.normed_input(x, context)[1].normed, context)
        bias = None if self.rotary else context.position_data
        return attention.attention_weights(queries, keys, context.visible, bias)

    def _heads(self, normed: jax.Array, context: AttentionContext) -> list[jax.Array]:
        """Queries, keys and values [B, N, H, d]."""
        batch, places, width = normed.shape
        split = block_ops(normed).split_qkv(self.qkv.linear(normed), self.qkv.bias[...])
        parts = [part.reshape(batch, places, self.heads, width // self.heads) for part in split]
        if self.rotary:
            parts[:2] = (rotate(part, context.position_data) for part in parts[:2])
        return parts


@BACKBONES.register("gpt2")
class GPT2(Backbone):
    """Token and position embeddings, blocks, final LayerNorm, and a head that is tied to the
    embedding or not."""

    model_types = ("gpt2",)
    embedding = "wte"
    hf = HFNames(
        top={
            "transformer.wte.weight": "wte",
            "transformer.wpe.weight": "wpe",
            "transformer.ln_f.weight": "ln_f/scale",
            "transformer.ln_f.bias": "ln_f/bias",
        },
        layer_prefix="transformer.h.",
        layer=LAYER_NAMES,
        head="lm_head.weight",
        bare_prefix="transformer.",
        dropped=r"(.*\.)?attn\.(masked_)?bias",  # causal masks that older saves hold
    )
    hf_sizes = ("n_layer", "n_embd", "vocab_size")
    blocks: GPT2Block

    def __init__(self, config: settings.Model, vocab: int, position_rows: int, rngs: nnx.Rngs):
        super().__init__(config)
        self.alibi = config.positions == "alibi"
        self.wte = nnx.Param(normal(rngs, (vocab, config.width), STD))
        if position_rows:
            shape = (position_rows, config.width)
            self.wpe = nnx.Param(normal(rngs, shape, STD))
        self.blocks = GPT2Block(config, rngs)
        self.ln_f = LayerNorm((config.width,))
        if not config.tied_head:
            self.head = nnx.Param(normal(rngs, (vocab, config.width), STD))

    def position_embedding(self, positions: jax.Array) -> jax.Array:
        if not self.position_rows:
            return super().position_embedding(positions)
        return embedding_lookup(self.wpe[...].astype(self.dtype), positions)

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> jax.Array | RotaryAngles | None:
        """ALiBi's bias f32[B, H, N, K], or the angles of rotary positions; None for a table."""
        if self.blocks.rotary:
            return rotary_angles(query_positions, frequencies(self.width // self.blocks.heads))
        if not self.alibi:
            return None
        return attention.alibi(self.blocks.heads, query_positions, key_positions, distant)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.ln_f(x)

    def fuses_attention(self, shape: tuple[int, int]) -> bool:
        if not self.blocks.fused or self.blocks.conv_width:
            return False
        heads = (*shape, self.blocks.heads, self.width // self.blocks.heads)
        return attention.available(self.dtype, heads, True, self.alibi) == "cudnn"

    @property
    def position_rows(self) -> int:
        return self.wpe.shape[0] if hasattr(self, "wpe") else 0

    @classmethod
    def table_rows(cls, config: settings.Model, memory_rows: int) -> int:
        return config.max_positions + memory_rows if config.positions == "learned" else 0

    @classmethod
    def check(cls, config: settings.Model) -> None:
        m = config
        if m.width % m.heads:
            raise ConfigError(
                f"model.width {m.width} does not divide into model.heads {m.heads}: choose a width"
                " that is a multiple of the heads, e.g."
                f" {m.heads * max(1, round(m.width / m.heads))}."
            )
        if m.positions == "rotary" and m.width // m.heads % 2:
            raise ConfigError(
                f"Rotary positions turn pairs of columns, but a head has {m.width // m.heads}"
                " (model.width / model.heads): make that an even number."
            )
        if m.position_layout == "wrap_pos" and m.positions != "learned":
            raise ConfigError(
                "model.position_layout=wrap_pos gives memory tokens rows of the position table,"
                f" which model.positions={m.positions} does not have: take"
                " model.positions=learned, or model.position_layout=plain."
            )

    @classmethod
    def max_places(cls, config: settings.Model) -> int | None:
        return config.max_positions if config.positions == "learned" else None

    def weights(self) -> dict[str, WeightInfo]:
        norm = WeightInfo(("layers", None), exact=True)
        vector = WeightInfo(("layers", None))
        final = WeightInfo((None,), exact=True)
        found = self.table_weights() | {"ln_f/scale": final, "ln_f/bias": final}
        if self.position_rows:
            found["wpe"] = found["wte"]
        found |= {
            f"blocks/{n}/{part}": norm for n in ("ln_1", "ln_2") for part in ("scale", "bias")
        }
        for name, outputs in (("qkv", "heads"), ("up", "mlp")):
            found[f"blocks/{name}/kernel"] = WeightInfo(("layers", "embed", outputs), "matrix")
            found[f"blocks/{name}/bias"] = WeightInfo(("layers", outputs))
        for name, inputs in (("out", "heads"), ("down", "mlp")):
            found[f"blocks/{name}/kernel"] = WeightInfo(("layers", inputs, "embed"), "matrix")
            found[f"blocks/{name}/bias"] = vector
        if self.blocks.conv_width:
            found["blocks/conv"] = WeightInfo(("layers", None, None), "convolution")
        return found

    @classmethod
    def layer_flops(
        cls, config: settings.Model, places: int, memory: int, wanted: int, causal: bool
    ) -> float:
        width = config.width
        scores = 4.0 * width * places * (0.5 if causal else 1)  # of one query
        # qkv 6, out 2, up 8, down 8: two for each of 12·D² weights. Keys and values of all places.
        made = places * 6.0 * width**2 + wanted * (18.0 * width**2 + scores)
        return made + 2.0 * config.conv_width * (places - memory) * width

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        kept = 16.0 * config.width * size  # two norms, qkv, attention, two sums, up 4, its gelu 4
        kept += config.heads * places * (4.0 + size)  # scores and softmax
        return 2.0 * batch * places * kept + 12.0 * config.width**2 * size

    @classmethod
    def wide_axes(cls, config: settings.Model) -> frozenset[int]:
        return frozenset((4 * config.width,))

    @classmethod
    def hf_shapes(cls, said: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        layers, width = said["n_layer"], said["n_embd"]
        found = {
            "wte": (said["vocab_size"], width),
            "wpe": (said["n_positions"], width),
            "blocks/qkv/kernel": (layers, width, 3 * width),
        }
        tied = said.get("tie_word_embeddings", True)
        return found if tied else found | {"head": found["wte"]}

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        width, guessed = weights["wte"].shape[1], []
        refuse_variants(said, HF_REQUIRED | {"n_inner": 4 * width}, what)
        if said.get("n_head") is None:
            if width % HEAD_WIDTH:
                raise WeightsError(
                    f"{what} says nothing about heads, and width {width} is no multiple of"
                    f' {HEAD_WIDTH}; put a config.json with "n_head" beside the weights.'
                )
            guessed.append(f"n_head {max(1, width // HEAD_WIDTH)} (width {width} / {HEAD_WIDTH})")
        if "wpe" not in weights:
            raise WeightsError(
                f"{what} has no position table transformer.wpe.weight; GPT-2 has one."
            )
        fields = {
            "layers": weights["blocks/qkv/kernel"].shape[0],
            "width": width,
            "heads": int(said.get("n_head") or max(1, width // HEAD_WIDTH)),
            "tied_head": "head" not in weights,
            "max_positions": weights["wpe"].shape[0],
        }
        return fields, guessed

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        vocab, width = weights["wte"].shape
        rows = weights["wpe"].shape[0] if "wpe" in weights else config.max_positions
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_layer": config.layers,
            "n_embd": width,
            "n_head": config.heads,
            "n_positions": rows,
            "vocab_size": vocab,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": config.tied_head,
        }

    @classmethod
    def differs_from_hf(cls, config: settings.Model) -> str:
        if config.positions == "learned" and not config.conv_width:
            return ""
        return (
            f"The backbone is not plain GPT-2: positions are `{config.positions}`, and a causal"
            f" depthwise convolution over {config.conv_width} tokens (`attn`'s input, tensors"
            " `conv.weight`) is added. Other GPT-2 code does not know these; use rmt_jax."
        )

    @classmethod
    def adopt(
        cls,
        fresh: Mapping[str, np.ndarray],
        found: Mapping[str, np.ndarray],
        config: settings.Model,
        source: settings.Model,
        what: str,
    ) -> dict[str, np.ndarray]:
        """A head starts as the source's embedding, a convolution as nothing; of the position table
        the rows of this config's text, and the memory's own rows where both have them."""
        found = super().adopt(fresh, found, config, source, what)
        if "blocks/conv" in fresh:
            found.setdefault("blocks/conv", fresh["blocks/conv"])
        if "wpe" in fresh and "wpe" in found:
            rows, table = config.max_positions, found["wpe"]
            if source.max_positions < rows or table.shape[1] != fresh["wpe"].shape[1]:
                raise WeightsError(
                    f"Training can't start from {what}: its position table is"
                    f" {list(table.shape)} and this config wants {rows:,} rows of width"
                    f" {fresh['wpe'].shape[1]}; lower model.max_positions."
                )
            own = table[source.max_positions :]
            own = own if own.shape == fresh["wpe"][rows:].shape else fresh["wpe"][rows:]
            found["wpe"] = np.concatenate([table[:rows], own])
        return found
