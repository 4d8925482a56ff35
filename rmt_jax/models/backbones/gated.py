"""What Llama and Gemma have in common: RMSNorm, rotary positions, grouped queries, and a
feed-forward with a gate. No backbone by itself: `llama.py` and `gemma3.py` say the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, setting
from rmt_jax.models.backbones import ROTARY, Backbone, Block
from rmt_jax.models.context import AttentionContext, KVCache, NormedInput
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.draw import normal
from rmt_jax.models.ops.linear import Linear
from rmt_jax.models.ops.positions import gather_tree
from rmt_jax.models.ops.rms_norm import RMSNorm
from rmt_jax.models.ops.rotary import RopeOptions, RotaryAngles, rotate
from rmt_jax.types import WeightInfo

STD = 0.02  # of every weight at the start
MATRICES = {  # ours -> HF's, GGUF's, the logical axes
    "query": ("self_attn.q_proj", "attn_q", "embed", "heads"),
    "key": ("self_attn.k_proj", "attn_k", "embed", "heads"),
    "value": ("self_attn.v_proj", "attn_v", "embed", "heads"),
    "out": ("self_attn.o_proj", "attn_output", "heads", "embed"),
    "gate": ("mlp.gate_proj", "ffn_gate", "embed", "mlp"),
    "up": ("mlp.up_proj", "ffn_up", "embed", "mlp"),
    "down": ("mlp.down_proj", "ffn_down", "mlp", "embed"),
}
TRANSPOSED = frozenset(f"blocks/{name}/kernel" for name in MATRICES)
NORMS = (  # before attention and feed-forward, behind them, of queries and keys
    "attention_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm", "query_norm", "key_norm",
)  # fmt: skip


def layer_names(norms: Mapping[str, tuple[str, ...]], which: int) -> dict[str, str]:
    """Names inside a layer -> ours; which: 0 for HF's, 1 for GGUF's. norms: ours -> theirs."""
    kernels = {f"{row[which]}.weight": f"blocks/{n}/kernel" for n, row in MATRICES.items()}
    biases = {f"{row[which]}.bias": f"blocks/{n}/bias" for n, row in MATRICES.items()}
    scales = {f"{row[which]}.weight": f"blocks/{n}/scale" for n, row in norms.items()}
    return kernels | biases | scales


@dataclass(frozen=True)
class GatedOptions(RopeOptions):
    """model.backbone_options."""

    kv_heads: int = setting(0, "Key-value heads; they divide the heads. 0: as many.", least=0)
    head_width: int = setting(0, "Columns of a head, an even number; 0: width / heads.", least=0)
    mlp_width: int = setting(
        0, "Width of the feed-forward; 0: 8/3 of the width, up to a multiple of 64.", least=0
    )
    norm_epsilon: float = setting(1e-5, "Added to the mean square in every RMSNorm.", least=0)
    window: int = setting(
        0, "Places that attention reaches back to; a segment must fit. 0: all.", least=0
    )


class GatedBlock(Block):
    """All blocks, stacked; called on one layer's slice of them."""

    def __init__(
        self,
        config: settings.Model,
        options: GatedOptions,
        rngs: nnx.Rngs,
        norms: Mapping[str, RMSNorm],
        activation: Callable[[jax.Array], jax.Array],
        qkv_bias: bool = False,
        query_scale: float = 1.0,
    ):
        """norms: those of `NORMS` that there are. query_scale: times 1 / √head_width on scores."""
        layers, width, middle = config.layers, config.width, options.mlp_width
        inside, kv = attention_widths(config, options)
        residual = STD / (2 * layers) ** 0.5
        self.head_width, self.fused = options.head_width, config.attention == "auto"
        self.activation, self.query_scale = activation, query_scale
        self.attention_norm, self.mlp_norm = norms["attention_norm"], norms["mlp_norm"]
        self.attention_out_norm = norms.get("attention_out_norm")
        self.mlp_out_norm = norms.get("mlp_out_norm")
        self.query_norm, self.key_norm = norms.get("query_norm"), norms.get("key_norm")
        self.query = Linear(layers, width, inside, rngs, STD, qkv_bias)
        self.key = Linear(layers, width, kv, rngs, STD, qkv_bias)
        self.value = Linear(layers, width, kv, rngs, STD, qkv_bias)
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
        angles = self.angles(context)
        kept = KVCache(self._keys(normed, angles), self._split(self.value(normed)))
        x, normed, angles = gather_tree((x, normed, angles), query_positions)
        queries = self._queries(normed, angles)
        y = attention.attend_segment(queries, kept, context, cache, query_positions, self.fused)
        x = x + _normed(self.attention_out_norm, self.out(y.reshape(*y.shape[:2], -1)))
        normed = self.mlp_norm(x)
        change = self.down(self.activation(self.gate(normed)) * self.up(normed))
        return x + _normed(self.mlp_out_norm, change), kept

    def attention_weights(self, x: jax.Array, context: AttentionContext) -> jax.Array:
        normed, angles = self.attention_norm(x), self.angles(context)
        queries, keys = self._queries(normed, angles), self._keys(normed, angles)
        return attention.attention_weights(queries, keys, context.visible)

    def angles(self, context: AttentionContext) -> RotaryAngles:
        """Of this layer."""
        return context.position_data

    def _queries(self, normed: jax.Array, angles: RotaryAngles) -> jax.Array:
        queries = rotate(_normed(self.query_norm, self._split(self.query(normed))), angles)
        return queries if self.query_scale == 1 else queries * self.query_scale

    def _keys(self, normed: jax.Array, angles: RotaryAngles) -> jax.Array:
        return rotate(_normed(self.key_norm, self._split(self.key(normed))), angles)

    def _split(self, x: jax.Array) -> jax.Array:
        """[B, N, H d] -> [B, N, H, d]."""
        return x.reshape(*x.shape[:2], x.shape[2] // self.head_width, self.head_width)


class GatedBackbone(Backbone):
    """Token embeddings, blocks, final RMSNorm, and a head that is tied to the embedding or not. A
    tenant has `Options`, a subclass of `GatedOptions`, and makes its blocks."""

    embedding = "embed_tokens"
    required = ROTARY
    hf_sizes = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_key_value_heads", "head_dim",
        "vocab_size",
    )  # fmt: skip
    norm_offset: ClassVar[float] = 0.0  # added to the scale of every RMSNorm
    blocks: GatedBlock

    def __init__(self, config: settings.Model, vocab: int, position_rows: int, rngs: nnx.Rngs):
        super().__init__(config)
        self.rope, shape = self.options(config), (vocab, config.width)
        self.heads = config.heads
        self.embed_tokens = nnx.Param(normal(rngs, shape, STD))
        self.blocks = self.make_blocks(config, self.rope, rngs)
        self.norm = self.make_norm((config.width,), self.rope)
        if not config.tied_head:
            self.head = nnx.Param(normal(rngs, shape, STD))

    @classmethod
    def make_blocks(cls, config: settings.Model, options: Any, rngs: nnx.Rngs) -> GatedBlock:
        """The layers of a config with these options."""
        raise NotImplementedError

    @classmethod
    def make_norm(cls, shape: tuple[int, ...], options: GatedOptions) -> RMSNorm:
        return RMSNorm(shape, options.norm_epsilon, cls.norm_offset)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)

    def fuses_attention(self, shape: tuple[int, int]) -> bool:
        heads = (*shape, self.heads, self.rope.head_width)
        return self.blocks.fused and attention.available(self.dtype, heads, True, False) == "cudnn"

    @classmethod
    def options(cls, config: settings.Model) -> Any:
        """With every size that is 0 filled in."""
        found = super().options(config)
        return replace(
            found,
            kv_heads=found.kv_heads or config.heads,
            head_width=found.head_width or config.width // config.heads,
            mlp_width=found.mlp_width or -(-config.width * 8 // (3 * 64)) * 64,
        )

    @classmethod
    def check(cls, config: settings.Model) -> None:
        super().check(config)
        if wrong := cls.wrong(config, cls.options(config), "model.backbone_options"):
            way = "Change model.heads or model.backbone_options."
            raise ConfigError(f"model.backbone={config.backbone}: {wrong}. {way}")

    @classmethod
    def wrong(cls, config: settings.Model, options: Any, name: str) -> str:
        """What can't be, in words; ''. name: of the options, for the sentence."""
        if config.width % config.heads and "head_width" not in config.backbone_options:
            return f"model.width {config.width} does not divide into model.heads {config.heads}"
        if config.heads % options.kv_heads:
            return f"{name}.kv_heads {options.kv_heads} does not divide model.heads {config.heads}"
        if options.head_width % 2:
            return f"a head has {options.head_width} columns, and rotary positions turn pairs"
        return ""

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
        options = cls.options(config)
        inside, kv = attention_widths(config, options)
        scores = 4.0 * inside * places * (0.5 if causal else 1)  # of one query
        each = 2.0 * config.width * (2 * inside + 3 * options.mlp_width) + scores
        return places * 4.0 * config.width * kv + wanted * each

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        options = cls.options(config)
        (inside, kv), wide = attention_widths(config, options), options.mlp_width
        # Queries and attention; keys and values; gate, up and their product: made by as many rows.
        made = 2.0 * inside + 2 * kv + 3 * wide
        kept = (4.0 * config.width + made) * size  # and two norms, two sums
        kept += config.heads * places * (4.0 + size)  # scores and softmax
        return 2.0 * batch * places * kept + config.width * made * size

    @classmethod
    def wide_axes(cls, config: settings.Model) -> frozenset[int]:
        return frozenset((cls.options(config).mlp_width,))

    @classmethod
    def hf_shapes(cls, said: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        layers, heads = said["num_hidden_layers"], said["num_attention_heads"]
        width = said["hidden_size"]
        head = said.get("head_dim") or width // heads
        columns = {
            "query": heads * head,
            "key": (said.get("num_key_value_heads") or heads) * head,
            "gate": said["intermediate_size"],
        }
        found: dict[str, tuple[int, ...]] = {"embed_tokens": (said["vocab_size"], width)}
        found |= {f"blocks/{name}/kernel": (layers, width, n) for name, n in columns.items()}
        return found if said.get("tie_word_embeddings") else found | {"head": found["embed_tokens"]}

    @classmethod
    def sizes_from_hf(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of `config.Model`, and of `GatedOptions` but those of rotary positions. Raises
        WeightsError for heads that do not fit the tensors."""
        inside, kv = (weights[f"blocks/{n}/kernel"].shape[-1] for n in ("query", "key"))
        heads = said.get("num_attention_heads")
        width = said.get("head_dim") or (heads and inside // heads)
        if not heads or inside != heads * width or kv % width:
            raise WeightsError(
                f"{what} has queries of {inside} and keys of {kv} columns, but its config.json says"
                f" num_attention_heads = {heads}: put the model's own config.json beside it."
            )
        fields = {
            "layers": weights["blocks/query/kernel"].shape[0],
            "width": weights["embed_tokens"].shape[1],
            "heads": heads,
            "positions": "rotary",
            "max_positions": int(said.get("max_position_embeddings") or 2048),
            "tied_head": "head" not in weights,
        }
        options = {
            "kv_heads": kv // width,
            "head_width": width,
            "mlp_width": weights["blocks/gate/kernel"].shape[-1],
            "norm_epsilon": float(said.get("rms_norm_eps") or 1e-6),
        }
        return fields, options

    @classmethod
    def sizes_to_hf(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """The inverse of `sizes_from_hf`."""
        options = cls.options(config)
        return {
            "num_hidden_layers": config.layers,
            "hidden_size": config.width,
            "intermediate_size": options.mlp_width,
            "num_attention_heads": config.heads,
            "num_key_value_heads": options.kv_heads,
            "head_dim": options.head_width,
            "max_position_embeddings": config.max_positions,
            "vocab_size": cls.vocab_of(weights),
            "rms_norm_eps": options.norm_epsilon,
            "tie_word_embeddings": config.tied_head,
        }


def attention_widths(config: settings.Model, options: GatedOptions) -> tuple[int, int]:
    """Columns of all queries, and of all keys."""
    return config.heads * options.head_width, options.kv_heads * options.head_width


def _normed(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
