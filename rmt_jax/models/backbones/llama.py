"""The Llama family (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped queries.

Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen2.5 and Qwen3, exactly; what each of them adds is an
option. `config.Model` says layers, width and heads, `Options` the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import setting
from rmt_jax.models.backbones import BACKBONES, HFNames, refuse_variants
from rmt_jax.models.backbones.gated import (
    TRANSPOSED,
    GatedBackbone,
    GatedBlock,
    GatedOptions,
    layer_names,
)
from rmt_jax.models.io import lazy, rope
from rmt_jax.models.io.lazy import Array
from rmt_jax.models.ops.rotary import RotaryAngles, halves_from_pairs, rotary_angles

# What HF's config.json must say, where it says it: other values compute something else.
HF_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
NORMS = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "query_norm": ("self_attn.q_norm", "attn_q_norm"),
    "key_norm": ("self_attn.k_norm", "attn_k_norm"),
}


@dataclass(frozen=True)
class LlamaOptions(GatedOptions):
    """model.backbone_options."""

    qkv_bias: bool = setting(False, "Biases on queries, keys and values, as in Qwen2.")
    qk_norm: bool = setting(False, "RMSNorm on every query and key, as in Qwen3.")


@BACKBONES.register("llama")
class Llama(GatedBackbone):
    """See the module."""

    Options = LlamaOptions
    model_types = ("llama", "mistral", "qwen2", "qwen3")
    hf = HFNames(
        top={"model.embed_tokens.weight": "embed_tokens", "model.norm.weight": "norm/scale"},
        layer_prefix="model.layers.",
        layer=layer_names(NORMS, 0),
        transposed=TRANSPOSED,
        head="lm_head.weight",
        bare_prefix="model.",
        dropped=r"(.*\.)?rotary_emb\.inv_freq",  # that older saves hold
    )
    gguf_architectures = ("llama", "qwen2", "qwen3")
    gguf = HFNames(
        top={"token_embd.weight": "embed_tokens", "output_norm.weight": "norm/scale"},
        layer_prefix="blk.",
        layer=layer_names(NORMS, 1),
        transposed=TRANSPOSED,
        head="output.weight",
        dropped=r"rope_freqs\.weight",  # of the options' frequencies
    )

    @classmethod
    def make_blocks(
        cls, config: settings.Model, options: LlamaOptions, rngs: nnx.Rngs
    ) -> GatedBlock:
        sizes = {"attention_norm": config.width, "mlp_norm": config.width}
        if options.qk_norm:
            sizes |= {"query_norm": options.head_width, "key_norm": options.head_width}
        norms = {n: cls.make_norm((config.layers, size), options) for n, size in sizes.items()}
        return GatedBlock(config, options, rngs, norms, jax.nn.silu, options.qkv_bias)

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> RotaryAngles:
        return rotary_angles(query_positions, self.rope.frequencies(self.rope.head_width))

    @classmethod
    def wrong(cls, config: settings.Model, options: LlamaOptions, name: str) -> str:
        if found := super().wrong(config, options, name):
            return found
        if options.rope_low_turns >= options.rope_high_turns:
            return f"{name}.rope_low_turns must be below rope_high_turns {options.rope_high_turns}"
        if options.qkv_bias and options.qk_norm:
            return f"{name}.qkv_bias (Qwen2) and qk_norm (Qwen3) are in no model together"
        return ""

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        refuse_variants(said, HF_REQUIRED, what)
        fields, options = cls.sizes_from_hf(said, weights, what)
        # Qwen names a window that it need not use.
        windowed = said.get("use_sliding_window") or said.get("model_type") == "mistral"
        options |= rope.from_hf(said, what) | {
            "qkv_bias": "blocks/query/bias" in weights,
            "qk_norm": "blocks/query_norm/scale" in weights,
            "window": int(windowed and said.get("sliding_window") or 0),
        }
        return fields | {"backbone_options": options}, []

    @classmethod
    def hf_shapes(cls, said: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        found, kind = super().hf_shapes(said), said.get("model_type")
        if kind == "qwen2":
            found["blocks/query/bias"] = found["blocks/query/kernel"][::2]
        if kind == "qwen3":
            found["blocks/query_norm/scale"] = (said["num_hidden_layers"], said["head_dim"])
        return found

    @classmethod
    def from_gguf(
        cls, weights: Mapping[str, Array], config: settings.Model, architecture: str
    ) -> dict[str, Array]:
        """Llama's own queries and keys stand in pairs there, Qwen's as here."""
        found, options = dict(weights), cls.options(config)
        if architecture == "llama":
            for name, heads in (("query", config.heads), ("key", options.kv_heads)):
                for part in {f"blocks/{name}/kernel", f"blocks/{name}/bias"} & found.keys():
                    columns = np.arange(found[part].shape[-1])
                    found[part] = lazy.columns(found[part], halves_from_pairs(columns, heads))
        return found

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        options = cls.options(config)
        name = "Mistral" if options.window else "Llama"
        if options.qkv_bias or options.qk_norm:
            name = "Qwen3" if options.qk_norm else "Qwen2"
        return (
            cls.sizes_to_hf(config, weights)
            | rope.to_hf(options)
            | {
                "architectures": [f"{name}ForCausalLM"],
                "model_type": name.lower(),
                "hidden_act": "silu",
                "sliding_window": options.window or None,
                "use_sliding_window": bool(options.window),
                "max_window_layers": 0,
            }
        )
