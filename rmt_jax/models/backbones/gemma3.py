"""Gemma 3, its text models (Gemma team 2025): embeddings times √D, norms before and behind
attention and feed-forward, GeGLU, norms of queries and keys, and two bases of rotary positions.

Layers are local, with a window and one base, or global, with another base. A segment, memory and
prompt included, is never longer than the window, so that the bases alone tell them apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from rmt_jax.models.context import AttentionContext
from rmt_jax.models.io import rope
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops.rotary import RotaryAngles, frequencies, rotary_angles

# What HF's config.json must say, where it says it: other values compute something else.
HF_REQUIRED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
NORMS = {
    "attention_norm": ("input_layernorm",),
    "attention_out_norm": ("post_attention_layernorm",),
    "mlp_norm": ("pre_feedforward_layernorm",),
    "mlp_out_norm": ("post_feedforward_layernorm",),
    "query_norm": ("self_attn.q_norm",),
    "key_norm": ("self_attn.k_norm",),
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"  # HF's names of the two kinds of layers
EVERY = 6  # of so many layers one is global, where nothing else is said
geglu = partial(jax.nn.gelu, approximate=True)


@dataclass(frozen=True)
class Gemma3Options(GatedOptions):
    """model.backbone_options."""

    norm_epsilon: float = setting(1e-6, "Added to the mean square in every RMSNorm.", least=0)
    rope_base: float = setting(1e6, "Base of the rotary frequencies of global layers.", least=1)
    local_rope_base: float = setting(1e4, "That of local layers.", least=1)
    global_layers: tuple[int, ...] = setting(
        (), "Numbers of the global layers, from 0; empty: every sixth.", least=0
    )
    query_scalar: int = setting(
        0, "Scores are divided by its root; 0: the columns of a head.", least=0
    )
    window: int = setting(
        512, "Places that local layers reach back to; a segment must fit.", least=1
    )


class BothAngles(NamedTuple):
    """Of the two kinds of layers."""

    local: RotaryAngles
    whole: RotaryAngles


class Gemma3Block(GatedBlock):
    """All blocks, stacked; called on one layer's slice of them."""

    def angles(self, context: AttentionContext) -> RotaryAngles:
        both: BothAngles = context.position_data
        return jax.tree.map(
            lambda local, whole: jnp.where(self.constants["is_global"], whole, local), *both
        )


@BACKBONES.register("gemma3")
class Gemma3(GatedBackbone):
    """See the module."""

    Options = Gemma3Options
    model_types = ("gemma3_text",)
    hf = HFNames(
        top={"model.embed_tokens.weight": "embed_tokens", "model.norm.weight": "norm/scale"},
        layer_prefix="model.layers.",
        layer=layer_names(NORMS, 0),
        transposed=TRANSPOSED,
        head="lm_head.weight",
        bare_prefix="model.",
        marks=("pre_feedforward_layernorm.weight",),
    )
    norm_offset = 1.0
    blocks: Gemma3Block

    @classmethod
    def make_blocks(
        cls, config: settings.Model, options: Gemma3Options, rngs: nnx.Rngs
    ) -> Gemma3Block:
        sizes = {name: config.width for name in NORMS}
        sizes |= {"query_norm": options.head_width, "key_norm": options.head_width}
        norms = {n: cls.make_norm((config.layers, size), options) for n, size in sizes.items()}
        scale = (options.head_width / options.query_scalar) ** 0.5
        return Gemma3Block(config, options, rngs, norms, geglu, query_scale=scale)

    def embed(self, tokens: jax.Array) -> jax.Array:
        return super().embed(tokens) * self.width**0.5

    def embedding_std(self) -> jax.Array:
        return super().embedding_std() * self.width**0.5

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> BothAngles:
        bases = (self.rope.local_rope_base, self.rope.rope_base)
        columns = (frequencies(self.rope.head_width, base) for base in bases)
        return BothAngles(*(rotary_angles(query_positions, each) for each in columns))

    def layer_constants(self) -> dict[str, jax.Array]:
        numbers = jnp.array(self.rope.global_layers, jnp.int32)
        return {"is_global": jnp.isin(jnp.arange(self.layers), numbers)}

    @classmethod
    def options(cls, config: settings.Model) -> Gemma3Options:
        found: Gemma3Options = super().options(config)
        every = tuple(range(EVERY - 1, config.layers, EVERY))
        return replace(
            found,
            global_layers=found.global_layers or every,
            query_scalar=found.query_scalar or found.head_width,
        )

    @classmethod
    def wrong(cls, config: settings.Model, options: Gemma3Options, name: str) -> str:
        if found := super().wrong(config, options, name):
            return found
        if options.rope_scaling != "none":
            return f"{name}.rope_scaling={options.rope_scaling} is none of this family's"
        if max(options.global_layers, default=0) >= config.layers:
            return (
                f"{name}.global_layers names layer {max(options.global_layers)}, and there are"
                f" {config.layers}, from 0"
            )
        return ""

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        refuse_variants(said, HF_REQUIRED, what)
        fields, options = cls.sizes_from_hf(said, weights, what)
        kinds = said.get("layer_types")
        if kinds is None:  # as transformers 4 says it
            every = said.get("sliding_window_pattern") or EVERY
            kinds = [LOCAL if (n + 1) % every else GLOBAL for n in range(fields["layers"])]
        strange = set(kinds) - {LOCAL, GLOBAL}
        if strange or GLOBAL not in kinds or len(kinds) != fields["layers"]:
            raise WeightsError(
                f"The config of {what} says layer_types of {len(kinds)} layers,"
                f" {', '.join(sorted(set(kinds)))}, but its tensors have {fields['layers']}, which"
                f" are {LOCAL} or, one of them at least, {GLOBAL}."
            )
        options |= {
            "rope_base": _base(said, GLOBAL, "rope_theta", 1e6, what),
            "local_rope_base": _base(said, LOCAL, "rope_local_base_freq", 1e4, what),
            "global_layers": tuple(n for n, kind in enumerate(kinds) if kind == GLOBAL),
            "query_scalar": int(said.get("query_pre_attn_scalar") or options["head_width"]),
            "window": int(said.get("sliding_window") or 4096),
        }
        return fields | {"backbone_options": options}, []

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        options = cls.options(config)
        bases = {LOCAL: options.local_rope_base, GLOBAL: options.rope_base}
        kinds = [GLOBAL if n in options.global_layers else LOCAL for n in range(config.layers)]
        return cls.sizes_to_hf(config, weights) | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds,
            "query_pre_attn_scalar": options.query_scalar,
            "sliding_window": options.window,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
            },
            # As transformers 4 says it.
            "rope_theta": options.rope_base,
            "rope_local_base_freq": options.local_rope_base,
        }


def _base(said: Mapping[str, Any], kind: str, older: str, usual: float, what: str) -> float:
    """Of the rotary frequencies of a kind of layers, in the config.json of transformers 5, or 4.
    Raises WeightsError for scalings, by name."""
    own = (said.get("rope_parameters") or {}).get(kind)
    scaling = None if kind == LOCAL else said.get("rope_scaling")  # of global layers alone
    about = rope.parameters({"rope_parameters": own, "rope_scaling": scaling}, what, ("default",))
    return float(about.get("rope_theta") or said.get(older) or usual)
