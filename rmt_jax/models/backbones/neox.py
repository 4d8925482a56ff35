"""GPT-NeoX (Black et al. 2022), of which Pythia is: attention and feed-forward side by side,
LayerNorm with a bias, rotary positions in a part of each head, and a head that is not tied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, setting
from rmt_jax.models.backbones import (
    BACKBONES,
    ROTARY,
    Backbone,
    Block,
    HFNames,
    refuse_variants,
)
from rmt_jax.models.context import AttentionContext, KVCache, NormedInput
from rmt_jax.models.io import rope
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.block import gelu
from rmt_jax.models.ops.draw import normal
from rmt_jax.models.ops.layer_norm import LayerNorm
from rmt_jax.models.ops.linear import Linear
from rmt_jax.models.ops.positions import gather_tree
from rmt_jax.models.ops.rotary import RotaryAngles, frequencies, rotary_angles, rotate
from rmt_jax.types import WeightInfo

STD = 0.02  # of every weight at the start
# What HF's config.json must say, where it says it: other values compute something else.
HF_REQUIRED = {"attention_bias": True, "layer_norm_eps": 1e-5}
MATRICES = {  # ours -> HF's, the logical axes
    "qkv": ("attention.query_key_value", "embed", "heads"),
    "out": ("attention.dense", "heads", "embed"),
    "up": ("mlp.dense_h_to_4h", "embed", "mlp"),
    "down": ("mlp.dense_4h_to_h", "mlp", "embed"),
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # ours -> torch's
ACTIVATIONS = {"gelu": partial(jax.nn.gelu, approximate=False), "gelu_tanh": gelu}
HF_ACTIVATIONS = {  # theirs -> ours; the first of each is written
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
LAYER_NAMES = {
    f"{theirs}.{PARTS[part]}": f"blocks/{name}/{part}"
    for names, parts in (
        ({n: row[0] for n, row in MATRICES.items()}, ("kernel", "bias")),
        (NORMS, ("scale", "bias")),
    )
    for name, theirs in names.items()
    for part in parts
}


@dataclass(frozen=True)
class NeoxOptions:
    """model.backbone_options."""

    mlp_width: int = setting(0, "Width of the feed-forward; 0: four times the width.", least=0)
    rotary_width: int = setting(
        0, "Columns of a head that rotary positions turn, an even number; 0: a quarter.", least=0
    )
    rope_base: float = setting(10_000.0, "Base of the rotary frequencies.", least=1)
    parallel: bool = setting(True, "Attention and feed-forward read the same input.")
    activation: str = setting(
        "gelu", "Of the feed-forward; gelu is exact.", choices=tuple(ACTIVATIONS)
    )


class NeoxBlock(Block):
    """All blocks, stacked; called on one layer's slice of them."""

    def __init__(self, config: settings.Model, options: NeoxOptions, rngs: nnx.Rngs):
        layers, width, middle = config.layers, config.width, options.mlp_width
        residual = STD / (2 * layers) ** 0.5
        self.heads, self.fused = config.heads, config.attention == "auto"
        self.parallel, self.activation = options.parallel, ACTIVATIONS[options.activation]
        self.attention_norm = LayerNorm((layers, width))
        self.qkv = Linear(layers, width, 3 * width, rngs, STD)
        self.out = Linear(layers, width, width, rngs, residual)
        self.mlp_norm = LayerNorm((layers, width))
        self.up = Linear(layers, width, middle, rngs, STD)
        self.down = Linear(layers, middle, width, rngs, residual)

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
        queries, keys, values = self._heads(normed, context.position_data)
        kept = KVCache(keys, values)
        x, queries = gather_tree((x, queries), query_positions)
        y = attention.attend_segment(queries, kept, context, cache, query_positions, self.fused)
        change = self.out(y.reshape(x.shape))
        seen = self.mlp_norm(x if self.parallel else x + change)
        return x + change + self.down(self.activation(self.up(seen))), kept

    def attention_weights(self, x: jax.Array, context: AttentionContext) -> jax.Array:
        queries, keys, _ = self._heads(self.attention_norm(x), context.position_data)
        return attention.attention_weights(queries, keys, context.visible)

    def _heads(self, normed: jax.Array, angles: RotaryAngles) -> tuple[jax.Array, ...]:
        """Queries, keys and values [B, N, H, d]; the matrix has a head's three side by side."""
        together = self.qkv(normed).reshape(*normed.shape[:2], self.heads, -1)
        queries, keys, values = jnp.split(together, 3, axis=-1)
        return rotate(queries, angles), rotate(keys, angles), values


@BACKBONES.register("neox")
class Neox(Backbone):
    """Token embeddings, blocks, final LayerNorm, and a head, tied to the embedding or not."""

    Options = NeoxOptions
    model_types = ("gpt_neox",)
    embedding = "embed_in"
    required = ROTARY
    hf = HFNames(
        top={
            "gpt_neox.embed_in.weight": "embed_in",
            "gpt_neox.final_layer_norm.weight": "final_layer_norm/scale",
            "gpt_neox.final_layer_norm.bias": "final_layer_norm/bias",
        },
        layer_prefix="gpt_neox.layers.",
        layer=LAYER_NAMES,
        transposed=frozenset(f"blocks/{name}/kernel" for name in MATRICES),
        head="embed_out.weight",
        head_too="lm_head.weight",  # in saves of transformers 5
        bare_prefix="gpt_neox.",
        # Masks and frequencies, that older saves hold.
        dropped=r"(.*\.)?(attention\.(masked_)?bias|rotary_emb\.inv_freq)",
    )
    hf_sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    blocks: NeoxBlock

    def __init__(self, config: settings.Model, vocab: int, position_rows: int, rngs: nnx.Rngs):
        super().__init__(config)
        self.own, shape = self.options(config), (vocab, config.width)
        self.embed_in = nnx.Param(normal(rngs, shape, STD))
        self.blocks = NeoxBlock(config, self.own, rngs)
        self.final_layer_norm = LayerNorm((config.width,))
        if not config.tied_head:
            self.head = nnx.Param(normal(rngs, shape, STD))

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> RotaryAngles:
        columns = frequencies(self.own.rotary_width, self.own.rope_base)
        return rotary_angles(query_positions, columns)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.final_layer_norm(x)

    def fuses_attention(self, shape: tuple[int, int]) -> bool:
        heads = (*shape, self.blocks.heads, self.width // self.blocks.heads)
        kind = attention.available(self.dtype, heads, causal=True, biased=False)
        return self.blocks.fused and kind == "cudnn"

    @classmethod
    def options(cls, config: settings.Model) -> NeoxOptions:
        """With every size that is 0 filled in."""
        found: NeoxOptions = super().options(config)
        quarter = config.width // config.heads // 4
        return replace(
            found,
            mlp_width=found.mlp_width or 4 * config.width,
            rotary_width=found.rotary_width or max(2, quarter // 2 * 2),
        )

    @classmethod
    def check(cls, config: settings.Model) -> None:
        super().check(config)
        turned, head = cls.options(config).rotary_width, config.width // config.heads
        wrong = ""
        if config.width % config.heads:
            wrong = f"model.width {config.width} does not divide into model.heads {config.heads}"
        elif turned % 2 or turned > head:
            wrong = f"rotary_width {turned} is no even number of a head's {head} columns"
        if wrong:
            raise ConfigError(
                f"model.backbone=neox: {wrong}. Change model.heads or model.backbone_options."
            )

    def weights(self) -> dict[str, WeightInfo]:
        norm, final = WeightInfo(("layers", None), exact=True), WeightInfo((None,), exact=True)
        found = self.table_weights()
        found |= {f"final_layer_norm/{part}": final for part in ("scale", "bias")}
        found |= {f"blocks/{name}/{part}": norm for name in NORMS for part in ("scale", "bias")}
        for name, (_, *axes) in MATRICES.items():
            found[f"blocks/{name}/kernel"] = WeightInfo(("layers", *axes), "matrix")
            split = axes[1] if axes[1] != "embed" else None
            found[f"blocks/{name}/bias"] = WeightInfo(("layers", split))
        return found

    @classmethod
    def layer_flops(
        cls, config: settings.Model, places: int, memory: int, wanted: int, causal: bool
    ) -> float:
        width, middle = config.width, cls.options(config).mlp_width
        scores = 4.0 * width * places * (0.5 if causal else 1)  # of one query
        return places * 6.0 * width**2 + wanted * (2.0 * width**2 + 4.0 * width * middle + scores)

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        width, middle = config.width, cls.options(config).mlp_width
        kept = (
            8.0 * width + 2 * middle
        ) * size  # two norms, qkv, attention, two sums, up, its gelu
        kept += config.heads * places * (4.0 + size)  # scores and softmax
        return 2.0 * batch * places * kept + (4.0 * width + 2 * middle) * width * size

    @classmethod
    def wide_axes(cls, config: settings.Model) -> frozenset[int]:
        return frozenset((cls.options(config).mlp_width,))

    @classmethod
    def hf_shapes(cls, said: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        layers, width = said["num_hidden_layers"], said["hidden_size"]
        found = {
            "embed_in": (said["vocab_size"], width),
            "blocks/qkv/kernel": (layers, width, 3 * width),
            "blocks/up/kernel": (layers, width, said["intermediate_size"]),
        }
        return found if said.get("tie_word_embeddings") else found | {"head": found["embed_in"]}

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        refuse_variants(said, HF_REQUIRED, what)
        width, heads = weights["embed_in"].shape[1], said.get("num_attention_heads")
        if not heads or width % heads:
            raise WeightsError(
                f"{what} has the width {width}, but its config.json says num_attention_heads ="
                f" {heads}: put the model's own config.json beside it."
            )
        activation = said.get("hidden_act") or "gelu"
        if activation not in HF_ACTIVATIONS:
            raise WeightsError(
                f"The config of {what} says hidden_act = {activation!r}, but only"
                f" {', '.join(map(repr, HF_ACTIVATIONS))} can be loaded."
            )
        about = rope.parameters(said, what, ("default",))
        # `rotary_pct` and `rotary_emb_base` are what transformers 4 says.
        share = said.get("rotary_pct") or about.get("partial_rotary_factor") or 0.25
        options = {
            "mlp_width": weights["blocks/up/kernel"].shape[-1],
            "rotary_width": int(width // heads * share),
            "rope_base": float(said.get("rotary_emb_base") or about.get("rope_theta") or 1e4),
            "parallel": bool(said.get("use_parallel_residual", True)),
            "activation": HF_ACTIVATIONS[activation],
        }
        return {
            "layers": weights["blocks/qkv/kernel"].shape[0],
            "width": width,
            "heads": heads,
            "positions": "rotary",
            "max_positions": int(said.get("max_position_embeddings") or 2048),
            "tied_head": "head" not in weights,
            "backbone_options": options,
        }, []

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        options = cls.options(config)
        theirs = {ours: name for name, ours in reversed(HF_ACTIVATIONS.items())}
        share = options.rotary_width / (config.width // config.heads)
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "num_hidden_layers": config.layers,
            "hidden_size": config.width,
            "intermediate_size": options.mlp_width,
            "num_attention_heads": config.heads,
            "max_position_embeddings": config.max_positions,
            "vocab_size": cls.vocab_of(weights),
            "hidden_act": theirs[options.activation],
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": options.parallel,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": options.rope_base,
                "partial_rotary_factor": share,
            },
            "rotary_pct": share,
            "rotary_emb_base": options.rope_base,
            "tie_word_embeddings": config.tied_head,
        }
