"""The backbone contract: what turns tokens into hidden states, one segment at a time.

A backbone is one file with two classes: a `Block`, whose weights hold all layers with the layer as
their first axis, and a `Backbone` around it. Register it with `@BACKBONES.register("name")`; a
config names it as `model.backbone`. Nothing else in the package knows its weights, their names or
their shapes. `gpt2.py` is the example to read; docs/howto/port_backbone.md walks through one.

Letters as in `rmt_jax.types`: B texts, N places, D width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, NoOptions
from rmt_jax.models import platform
from rmt_jax.models.context import AttentionContext, KVCache, NormedInput
from rmt_jax.models.io.lazy import Array
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.registry import Registry
from rmt_jax.types import WeightInfo

BACKBONES: "Registry[type[Backbone]]" = Registry(
    "backbone", "config.model.backbone", "rmt_jax.models.backbones"
)


# `Backbone.required` of one whose positions are rotary (`learned` is what a config says that says
# nothing), without the short convolution.
ROTARY = {
    "position_layout": ("plain",),
    "conv_width": (0,),
    "positions": ("rotary", "learned"),
}


class HFNames(NamedTuple):
    """How Hugging Face names the weights of a backbone, and ours.

    Theirs is one tensor per layer, `transformer.h.3.ln_1.weight`; ours has all layers in one array,
    `blocks/ln_1/scale`.
    """

    top: Mapping[str, str] = {}  # HF name -> ours, for what exists once
    layer_prefix: str = ""  # 'transformer.h.': followed by the number of the layer and a full stop
    layer: Mapping[str, str] = {}  # HF name inside a layer -> ours
    transposed: frozenset[str] = frozenset()  # ours whose matrices HF holds as (out, in)
    head: str = ""  # HF's name of the output embedding, which is stored even where it is tied
    head_too: str = ""  # another name of it, which is read and never written
    # Names inside a layer by which a family is known that has all others of another one too
    marks: tuple[str, ...] = ()
    # What some saves leave out: 'transformer.' in 'wte.weight'
    bare_prefix: str = ""
    dropped: str = ""  # regular expression of tensors that hold no weights, such as mask buffers


class Block(nnx.Module):
    """All layers of a backbone, stacked; called on one layer's slice of them.

    Attributes:
      constants: what this layer has of `Backbone.layer_constants`; the runner puts it here.
    """

    constants: dict[str, jax.Array]

    def normed_input(
        self, x: jax.Array, context: AttentionContext, cache: KVCache | None = None
    ) -> tuple[jax.Array, NormedInput]:
        """x itself, to go on with, and what attention reads of it: x [B, N, D].

        A memory cell may read it too (`delta` does), before the layer runs.
        """
        raise NotImplementedError

    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
        normed_input: NormedInput | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """One layer: x [B, N, D] -> x [B, N, D] and the cache of these N places alone.

        cache: of earlier places, which attention sees too (decoding). query_positions i32[B, n]: x
        is wanted at these places only, [B, n, D]; keys and values are still made of all.
        normed_input: what attention reads, where the caller has it already.
        """
        raise NotImplementedError

    def attention_weights(self, x: jax.Array, context: AttentionContext) -> jax.Array | None:
        """f32[B, H, N, N] of a layer's input, for inspection; None where there is no attention."""
        return None


class Backbone(nnx.Module):
    """Embeddings, blocks, final norm and logits.

    Attributes to set in `__init__(config, vocab, position_rows, rngs)`: `blocks`, the weight that
    `embedding` names, and `head` [V, D] where the output embedding is not tied to it. The base
    class sets `layers`, `width`, `dtype` (compute).
    """

    Options: ClassVar[type] = NoOptions  # a frozen dataclass of settings beyond `config.Model`'s
    model_types: ClassVar[tuple[str, ...]] = ()  # of Hugging Face's config.json, that it can load
    required: ClassVar[Mapping[str, tuple]] = {}  # fields of `config.Model` -> what they may be
    embedding: ClassVar[str] = ""  # name of the weight [V, D] that embeds tokens
    hf: ClassVar[HFNames] = HFNames()
    hf_sizes: ClassVar[tuple[str, ...]] = ()  # of `to_hf_config`, what tensors say by their shapes
    gguf: ClassVar[HFNames] = HFNames()  # the same names in GGUF files
    gguf_architectures: ClassVar[tuple[str, ...]] = ()  # that it can load
    blocks: Block

    def __init__(self, config: settings.Model):
        self.layers, self.width = config.layers, config.width
        self.dtype = compute_dtype(config.dtype)

    # What it computes.

    def embed(self, tokens: jax.Array) -> jax.Array:
        """i32[...] -> [..., D] in the compute dtype."""
        return getattr(self, self.embedding)[...].astype(self.dtype)[tokens]

    def position_embedding(self, positions: jax.Array) -> jax.Array:
        """Added to what enters the first layer: i32[...] -> [..., D], or a zero without shape."""
        return jnp.zeros((), self.dtype)

    def position_data(
        self, query_positions: jax.Array, key_positions: jax.Array, distant: jax.Array
    ) -> Any:
        """What the layers need of positions i32[B, N] and i32[B, K], made once per segment: a bias,
        rotary angles. distant bool[N, K]: False between places that have no distance, since one
        of them is a memory token. It must be a tree of arrays whose first axis is B."""
        return None

    def layer_constants(self) -> dict[str, jax.Array]:
        """Arrays that are no weights, layer first: a block has its layer's as `constants`."""
        return {}

    def final_norm(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]: what logits are made of, and memory tokens become."""
        raise NotImplementedError

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D], after the final norm -> f32[..., V]."""
        table = getattr(self, "head" if hasattr(self, "head") else self.embedding)
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            table[...].astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )

    def embedding_std(self) -> jax.Array:
        """f32[]: standard deviation over the whole embedding, the scale of new memory tokens."""
        return getattr(self, self.embedding)[...].std()

    def fuses_attention(self, shape: tuple[int, int]) -> bool:
        """Whether a fused kernel serves whole segments of [B, N] places that only need a causal
        mask; then all padding is moved to the end while the layers run."""
        return False

    # What it says of itself, without weights.

    @property
    def position_rows(self) -> int:
        """Rows of the position table; 0: there is none."""
        return 0

    @classmethod
    def options(cls, config: settings.Model) -> Any:
        """`config.backbone_options` as the `Options` of this backbone."""
        return settings.build_options(
            cls.Options, config.backbone_options, "model.backbone_options"
        )

    @classmethod
    def table_rows(cls, config: settings.Model, memory_rows: int) -> int:
        """Rows that the position table is made with; `memory_rows` are added for memory tokens
        that have rows of their own."""
        return 0

    @classmethod
    def check(cls, config: settings.Model) -> None:
        """Raises ConfigError for settings that this backbone can't have: here by `required`."""
        for name, values in cls.required.items():
            if getattr(config, name) not in values:
                raise ConfigError(
                    f"model.backbone={config.backbone} does not go with"
                    f" model.{name}={getattr(config, name)}: set that to"
                    f" {' or '.join(map(str, values))}, or take another backbone."
                )

    @classmethod
    def max_places(cls, config: settings.Model) -> int | None:
        """Positions that a segment can have, memory and prompt included; None: any number."""
        return None

    def weights(self) -> dict[str, WeightInfo]:
        """Logical axes, kind and precision of every weight, by its name below `backbone/`."""
        raise NotImplementedError

    def table_weights(self) -> dict[str, WeightInfo]:
        """`weights` of the embedding, and of the head where there is one."""
        names = (self.embedding, *(["head"] if hasattr(self, "head") else []))
        return {name: WeightInfo(("vocab", "table_features"), "embedding") for name in names}

    @classmethod
    def layer_flops(
        cls, config: settings.Model, places: int, memory: int, wanted: int, causal: bool
    ) -> float:
        """FLOPs of a layer's products over N `places` of one text, forward.

        memory: how many places are memory tokens. wanted: places that the output is needed at
        (N: all). causal: count the visible half of the scores only.
        """
        raise NotImplementedError

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        """Bytes that a layer's forward pass moves for `batch` texts, numbers of `size` bytes."""
        raise NotImplementedError

    @classmethod
    def wide_axes(cls, config: settings.Model) -> frozenset[int]:
        """Sizes of last axes that a `tensor` mesh axis splits inside a layer."""
        return frozenset()

    # Hugging Face's files.

    @classmethod
    def vocab_of(cls, weights: Mapping[str, Any]) -> int:
        """V, from weights by name below `backbone/`."""
        return weights[cls.embedding].shape[0]

    @classmethod
    def from_hf_config(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], list[str]]:
        """Fields of `config.Model`, and the sizes that had to be guessed (in words). Raises
        WeightsError for variants that it does not compute, by name."""
        raise ConfigError(f"The backbone {cls.__name__} can't load Hugging Face's files.")

    @classmethod
    def hf_shapes(cls, said: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes that a config.json says of the weights, by name below `backbone/`: of those that
        `from_hf_config` looks at. It knows a model by them before its weights are there. A field
        that is missing is a KeyError."""
        raise ConfigError(f"The backbone {cls.__name__} can't load Hugging Face's files.")

    @classmethod
    def from_gguf(
        cls, weights: Mapping[str, Array], config: settings.Model, architecture: str
    ) -> dict[str, Array]:
        """Weights of a GGUF file, already under our names, in the order that ours have inside."""
        return dict(weights)

    @classmethod
    def to_hf_config(
        cls, config: settings.Model, weights: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Hugging Face's config.json of these weights; {} where HF knows no such model."""
        return {}

    @classmethod
    def differs_from_hf(cls, config: settings.Model) -> str:
        """What HF's code would miss, as a sentence for the model card; '' for an exact match."""
        return ""

    @classmethod
    def adopt(
        cls,
        fresh: Mapping[str, np.ndarray],
        found: Mapping[str, np.ndarray],
        config: settings.Model,
        source: settings.Model,
        what: str,
    ) -> dict[str, np.ndarray]:
        """`found` weights of a `source` as they start a training of `config`, whose freshly drawn
        ones are `fresh`: a longer position table is cut, say. Names and shapes are checked after.

        Here a head starts as the source's embedding. Raises WeightsError for options that differ:
        with another rotary base, say, the same weights compute something else.
        """
        ours, theirs = (asdict(cls.options(model)) for model in (config, source))
        wrong = [f"{n}={v} (here {ours[n]})" for n, v in theirs.items() if v != ours[n]]
        if wrong:
            raise WeightsError(
                f"Training can't start from {what}, which has {', '.join(wrong)}: set"
                " model.backbone_options to what it has."
            )
        return ({"head": found[cls.embedding]} if "head" in fresh else {}) | dict(found)


def compute_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators; on a CPU XLA's bfloat16 is slower than float32."""
    if name == "auto":
        name = "float32" if platform.current() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def refuse_variants(said: Mapping[str, Any], required: Mapping[str, Any], what: str) -> None:
    """Raises WeightsError where a config.json says another value than the one that the backbone
    computes, by name; what it does not say, or leaves null, is taken as required."""
    for key, value in required.items():
        if said.get(key) is not None and said[key] != value:
            raise WeightsError(
                f"The config of {what} says {key} = {said[key]!r}, but only {value!r} can be"
                " loaded: this backbone computes nothing else."
            )
