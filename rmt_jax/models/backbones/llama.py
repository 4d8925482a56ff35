"""The Llama family (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped queries.

Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen2.5 and Qwen3, exactly; what each of them adds is an
option. `config.Model` says layers, width and heads, `Options` the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, setting
from rmt_jax.models.backbones import BACKBONES, Backbone, Block, HFNames, refuse_variants
from rmt_jax.models.context import AttentionContext, KVCache, NormedInput
from rmt_jax.models.io import rope
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.linear import Linear
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.models.ops.rms_norm import RMSNorm
from rmt_jax.models.ops.rotary import (
    RopeOptions,
    RotaryAngles,
    halves_from_pairs,
    rotary_angles,
    rotate,
)
from rmt_jax.types import WeightInfo

STD = 0.02  # of every weight at the start
# What HF's config.json must say, where it says it: other values compute something else.
HF_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
MATRICES = {  # ours -> HF's, GGUF's, the logical axes
    "query": ("self_attn.q_proj", "attn_q", "embed", "heads"),
    "key": ("self_attn.k_proj", "attn_k", "embed", "heads"),
    "value": ("self_attn.v_proj", "attn_v", "embed", "heads"),
    "out": ("self_attn.o_proj", "attn_output", "heads", "embed"),
    "gate": ("mlp.gate_proj", "ffn_gate", "embed", "mlp"),
    "up": ("mlp.up_proj", "ffn_up", "embed", "mlp"),
    "down": ("mlp.down_proj", "ffn_down", "mlp", "embed"),
}
NORMS = {
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "query_norm": ("self_attn.q_norm", "attn_q_norm"),
    "key_norm": ("self_attn.k_norm", "attn_k_norm"),
}


def _layer_names(which: int) -> dict[str, str]:
    """Names inside a layer -> ours; which: 0 for HF's, 1 for GGUF's."""
    kernels = {f"{row[which]}.weight": f"blocks/{n}/kernel" for n, row in MATRICES.items()}
    biases = {f"{row[which]}.bias": f"blocks/{n}/bias" for n, row in MATRICES.items()}
    scales = {f"{row[which]}.weight": f"blocks/{n}/scale" for n, row in NORMS.items()}
    return kernels | biases | scales


@dataclass(frozen=True)
class LlamaOptions(RopeOptions):
    """model.backbone_options."""

    kv_heads: int = setting(0, "Key-value heads; they divide the heads. 0: as many.", least=0)
    head_width: int = setting(0, "Columns of a head, an even number; 0: width / heads.", least=0)
    mlp_width: int = setting(
        0, "Width of the feed-forward; 0: 8/3 of the width, up to a multiple of 64.", least=0
    )
    norm_epsilon: float = setting(1e-5, "Added to the mean square in every RMSNorm.", least=0)
    qkv_bias: bool = setting(False, "Biases on queries, keys and values, as in Qwen2.")
    qk_norm: bool = setting(False, "RMSNorm on every query and key, as in Qwen3.")
    window: int = setting(
        0, "Places that attention reaches back to; a segment must fit. 0: all.", least=0
    )


class LlamaBlock(Block):
    """All blocks, stacked; called on one layer's slice of them."""

    def __init__(self, config: settings.Model, options: LlamaOptions, rngs: nnx.Rngs):
        layers, width, bias = config.layers, config.width, options.qkv_bias
        (inside, kv), middle = attention_widths(config), options.mlp_width
        residual = STD / (2 * layers) ** 0.5

        def norm(size: int) -> RMSNorm:
            return RMSNorm((layers, size), options.norm_epsilon)

        self.head_width, self.fused = options.head_width, config.attention == "auto"
        self.attention_norm, self.mlp_norm = norm(width), norm(width)
        self.query = Linear(layers, width, inside, rngs, STD, bias)
        self.key = Linear(layers, width, kv, rngs, STD, bias)
        self.value = Linear(layers, width, kv, rngs, STD, bias)
        self.query_norm = norm(self.head_width) if options.qk_norm else None
        self.key_norm = norm(self.head_width) if options.qk_norm else None
        self.out = Linear(layers, inside, width, rngs, residual, bias=False)
        self.gate = Linear(layers, width, middle, rngs, STD, bias=False)
        self.up = Linear(layers, width, middle, rngs, STD, bias=False)
        self.down = Linear(layers, middle, width, rngs, residual, bias=False)

    def normed_input(
        self, x: jax.Array, context: AttentionContext, cache: KVCache | None = None
    ) -> tuple[jax.Array, NormedInput]:
        return x, NormedInput(self.attention_norm(x))

    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
        normed_input: NormedInput | None = None,
    ) -> tuple[jax.Array, KVCache]:
        normed = self.attention_norm(x) if normed_input is None else normed_input.normed
        angles, visible = context.position_data, context.visible
        keys = self._rotated(self.key(normed), self.key_norm, angles)
        values = self._split(self.value(normed))
        kept = KVCache(keys, values)
        if cache is not None:
            keys = jnp.concatenate([cache.keys, keys], axis=1)
            values = jnp.concatenate([cache.values, values], axis=1)
        if query_positions is not None:
            x, normed, angles, visible = jax.tree.map(
                lambda a: gather_positions(a, query_positions), (x, normed, angles, visible)
            )
        # With a cache, or at some places only, what is visible is not the causal triangle.
        whole = self.fused and cache is None and query_positions is None
        known = context.mask if whole else None
        queries = self._rotated(self.query(normed), self.query_norm, angles)
        y = attention.attend(queries, keys, values, visible, None, known, context.packed)
        x = x + self.out(y.reshape(*y.shape[:2], -1))
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed)), kept

    def attention_weights(self, x: jax.Array, context: AttentionContext) -> jax.Array:
        normed, angles = self.attention_norm(x), context.position_data
        queries = self._rotated(self.query(normed), self.query_norm, angles)
        keys = self._rotated(self.key(normed), self.key_norm, angles)
        return attention.attention_weights(queries, keys, context.visible)

    def _split(self, x: jax.Array) -> jax.Array:
        """[B, N, H d] -> [B, N, H, d]."""
        return x.reshape(*x.shape[:2], x.shape[2] // self.head_width, self.head_width)

    def _rotated(self, x: jax.Array, norm: RMSNorm | None, angles: RotaryAngles) -> jax.Array:
        """Queries or keys of their projection."""
        heads = self._split(x)
        return rotate(heads if norm is None else norm(heads), angles)


@BACKBONES.register("llama")
class Llama(Backbone):
    """Token embeddings, blocks, final RMSNorm, and a head that is tied to the embedding or not."""

    Options = LlamaOptions
    model_types = ("llama", "mistral", "qwen2", "qwen3")
    embedding = "embed_tokens"
    # `learned` is what a config says that says nothing.
    required = {
        "position_layout": ("plain",),
        "conv_width": (0,),
        "positions": ("rotary", "learned"),
    }
    hf = HFNames(
        top={"model.embed_tokens.weight": "embed_tokens", "model.norm.weight": "norm/scale"},
        layer_prefix="model.layers.",
        layer=_layer_names(0),
        transposed=frozenset(f"blocks/{n}/kernel" for n in MATRICES),
        head="lm_head.weight",
        bare_prefix="model.",
        dropped=r"(.*\.)?rotary_emb\.inv_freq",  # that older saves hold
    )
    hf_sizes = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    )
    gguf_architectures = ("llama", "qwen2", "qwen3")
    gguf = HFNames(
        top={"token_embd.weight": "embed_tokens", "output_norm.weight": "norm/scale"},
        layer_prefix="blk.",
        layer=_layer_names(1),
        transposed=hf.transposed,
        head="output.weight",
        dropped=r"rope_freqs\.weight",  # of the options' frequencies
    )
    blocks: LlamaBlock

    def __init__(self, config: settings.Model, vocab: int, position_rows: int, rngs: nnx.Rngs):
        super().__init__(config)
        self.rope, shape = self.options(config), (vocab, config.width)
        self.heads = config.heads
        self.embed_tokens = nnx.Param(STD * jax.random.normal(rngs.params(), shape))
        self.blocks = LlamaBlock(config, self.rope, rngs)
        self.norm = RMSNorm((config.width,), self.rope.norm_epsilon)
        if not config.tied_head:
            self.head = nnx.Param(STD * jax.random.normal(rngs.params(), shape))

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> RotaryAngles:
        return rotary_angles(query_positions, self.rope.frequencies(self.rope.head_width))

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)

    def fuses_attention(self, shape: tuple[int, int]) -> bool:
        queries = (*shape, self.heads, self.rope.head_width)
        kind = attention.available(self.dtype, queries, causal=True, biased=False)
        return self.blocks.fused and kind == "cudnn"

    @classmethod
    def options(cls, config: settings.Model) -> LlamaOptions:
        """With every size that is 0 filled in."""
        found: LlamaOptions = super().options(config)
        return replace(
            found,
            kv_heads=found.kv_heads or config.heads,
            head_width=found.head_width or config.width // config.heads,
            mlp_width=found.mlp_width or -(-config.width * 8 // (3 * 64)) * 64,
        )

    @classmethod
    def check(cls, config: settings.Model) -> None:
        super().check(config)
        options, name = cls.options(config), "model.backbone_options"
        wrong = ""
        if config.width % config.heads and "head_width" not in config.backbone_options:
            wrong = f"model.width {config.width} does not divide into model.heads {config.heads}"
        elif config.heads % options.kv_heads:
            wrong = f"{name}.kv_heads {options.kv_heads} does not divide model.heads {config.heads}"
        elif options.head_width % 2:
            wrong = f"a head has {options.head_width} columns, and rotary positions turn pairs"
        elif options.rope_low_turns >= options.rope_high_turns:
            wrong = f"{name}.rope_low_turns must be below rope_high_turns {options.rope_high_turns}"
        elif options.qkv_bias and options.qk_norm:
            wrong = f"{name}.qkv_bias (Qwen2) and qk_norm (Qwen3) are in no model together"
        if wrong:
            raise ConfigError(f"model.backbone=llama: {wrong}. Change model.heads or {name}.")

    @classmethod
    def max_places(cls, config: settings.Model) -> int | None:
        return cls.options(config).window or None

    def weights(self) -> dict[str, WeightInfo]:
        found = self.table_weights() | {"norm/scale": WeightInfo((None,), exact=True)}
        for name, (_, _, *axes) in MATRICES.items():
            found[f"blocks/{name}/kernel"] = WeightInfo(("layers", *axes), "matrix")
            if hasattr(getattr(self.blocks, name), "bias"):
                found[f"blocks/{name}/bias"] = WeightInfo(("layers", axes[-1]))
        for name in NORMS:
            if getattr(self.blocks, name) is not None:
                found[f"blocks/{name}/scale"] = WeightInfo(("layers", None), exact=True)
        return found

    @classmethod
    def layer_flops(
        cls, config: settings.Model, places: int, memory: int, wanted: int, causal: bool
    ) -> float:
        inside, kv = attention_widths(config)
        scores = 4.0 * inside * places * (0.5 if causal else 1)  # of one query
        each = 2.0 * config.width * (2 * inside + 3 * cls.options(config).mlp_width) + scores
        return places * 4.0 * config.width * kv + wanted * each

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        (inside, kv), wide = attention_widths(config), cls.options(config).mlp_width
        # Two norms, two sums; queries and attention; keys and values; gate, up and their product.
        kept = (4.0 * config.width + 2 * inside + 2 * kv + 3 * wide) * size
        kept += config.heads * places * (4.0 + size)  # scores and softmax
        return (
            2.0 * batch * places * kept + config.width * (2.0 * inside + 2 * kv + 3 * wide) * size
        )

    @classmethod
    def wide_axes(cls, config: settings.Model) -> frozenset[int]:
        return frozenset((cls.options(config).mlp_width,))

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        refuse_variants(said, HF_REQUIRED, what)
        inside, kv = (weights[f"blocks/{n}/kernel"].shape[-1] for n in ("query", "key"))
        heads = said.get("num_attention_heads")
        if not heads or inside % heads or kv % (inside // heads):
            raise WeightsError(
                f"{what} has queries of {inside} and keys of {kv} columns, but its config.json says"
                f" num_attention_heads = {heads}: put the model's own config.json beside it."
            )
        # Qwen names a window that it need not use.
        windowed = said.get("use_sliding_window") or said.get("model_type") == "mistral"
        options = rope.from_hf(said, what) | {
            "kv_heads": kv * heads // inside,
            "head_width": inside // heads,
            "mlp_width": weights["blocks/gate/kernel"].shape[-1],
            "norm_epsilon": float(said.get("rms_norm_eps") or 1e-6),
            "qkv_bias": "blocks/query/bias" in weights,
            "qk_norm": "blocks/query_norm/scale" in weights,
            "window": int(windowed and said.get("sliding_window") or 0),
        }
        return {
            "layers": weights["blocks/query/kernel"].shape[0],
            "width": weights["embed_tokens"].shape[1],
            "heads": heads,
            "positions": "rotary",
            "max_positions": int(said.get("max_position_embeddings") or 2048),
            "tied_head": "head" not in weights,
            "backbone_options": options,
        }, []

    @classmethod
    def from_gguf(
        cls, weights: Mapping[str, np.ndarray], config: settings.Model, architecture: str
    ) -> dict[str, np.ndarray]:
        """Llama's own queries and keys stand in pairs there, Qwen's as here."""
        found, options = dict(weights), cls.options(config)
        if architecture == "llama":
            for name, heads in (("query", config.heads), ("key", options.kv_heads)):
                for part in {f"blocks/{name}/kernel", f"blocks/{name}/bias"} & found.keys():
                    found[part] = halves_from_pairs(found[part], heads)
        return found

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        options = cls.options(config)
        name = "Mistral" if options.window else "Llama"
        if options.qkv_bias or options.qk_norm:
            name = "Qwen3" if options.qk_norm else "Qwen2"
        return rope.to_hf(options) | {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": name.lower(),
            "num_hidden_layers": config.layers,
            "hidden_size": config.width,
            "intermediate_size": options.mlp_width,
            "num_attention_heads": config.heads,
            "num_key_value_heads": options.kv_heads,
            "head_dim": options.head_width,
            "max_position_embeddings": config.max_positions,
            "vocab_size": cls.vocab_of(weights),
            "hidden_act": "silu",
            "rms_norm_eps": options.norm_epsilon,
            "sliding_window": options.window or None,
            "use_sliding_window": bool(options.window),
            "max_window_layers": 0,
            "tie_word_embeddings": config.tied_head,
        }


def attention_widths(config: settings.Model) -> tuple[int, int]:
    """Columns of all queries, and of all keys."""
    options = Llama.options(config)
    return config.heads * options.head_width, options.kv_heads * options.head_width
