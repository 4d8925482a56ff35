"""What attention looks up, kept of the tokens that matter: the memory of a pretrained model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, setting
from rmt_jax.models.backbones import BACKBONES, Backbone, Block
from rmt_jax.models.cells import CELLS, Memory, MemoryCell, relative_change
from rmt_jax.models.cells.delta import gate
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.types import Prompt, Segment, WeightInfo

OPEN = 4.0  # bias of a new gate: it is wholly open, so that the model is the backbone itself


@dataclass(frozen=True)
class KVOptions:
    """model.cell_options."""

    slots: int = setting(512, "Tokens that are kept.", unit="tokens", least=1)
    gate_layer: int = setting(
        0, "Layer, from 1, whose input opens the gates; 0: three fifths of the way up.", least=0
    )


class KeptTokens(NamedTuple):
    """K tokens of the text so far, in its order, in every layer (first axis; absent inside one)."""

    normed: jax.Array  # f32[layers, B, K, D]  what attention makes keys and values of
    gates: jax.Array  # f32[layers, B, K]  how far each gate opened; 0: an empty slot


@CELLS.register("kv")
class KV(MemoryCell):
    """The backbone's attention over K tokens of earlier segments, which stand between the prompt
    and the segment, close together. There are no memory tokens.

    A token is kept, whole, where its gate opens by more than `gate_threshold`. If more than K are,
    those go that open least, and of equals the oldest. With gates open and room for all, a text
    read in segments gives what one long segment gives: the recurrence of Transformer-XL (Dai et al.
    2019) with a gradient. With gates shut over background, a text as long as you like is read as
    its facts alone. So a pretrained model has nothing new to learn but the gate (tokens are
    forgotten one by one as in Expire-Span, Sukhbaatar et al. 2021), which `rmt_jax.gating` teaches.

    A token has one gate for all layers, since it stands at one position: a linear map of what
    attention reads in `gate_layer`. Gradients flow through what is kept, and to the gates as if a
    token that opens less counted less.
    """

    Options = KVOptions
    layerwise = True
    not_diagonal = "what all layers keep of a segment is chosen in one of them"
    reorders = False  # tokens are kept in the text's order
    state_row_label = "layer's kept tokens"
    view_labels = ("gate", "opening")
    has_gates = one_gate = True
    gate_weights = ("beta", "beta_bias")
    in_pytorch = False

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config, backbone, rngs)
        self.slots, self.width = self.kept_tokens(config), config.width
        self.threshold = config.gate_threshold[0] if config.gate_threshold else 0.0
        self.count, self.gate_layer = config.layers, self.gate_layer_of(config)
        self.beta = nnx.Param(jnp.zeros(config.width))
        self.beta_bias = nnx.Param(jnp.full((), OPEN))

    def initial_state(self, batch: int) -> KeptTokens:
        shape = (self.count, batch, self.slots)
        return KeptTokens(jnp.zeros((*shape, self.width)), jnp.zeros(shape))

    def kept_places(self, memory: Memory) -> jax.Array:
        return memory.state.gates[0] > 0

    def layer(
        self,
        block: Block,
        layer: Any,
        x: jax.Array,
        state: KeptTokens,
        started: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, KeptTokens, KVCache]:
        """The next state holds all that could be kept, [B, K + L, D], with a gate of 1 for the text
        and 0 for padding: `next_state` opens gates and chooses."""
        if cache is not None:  # what was kept stands there
            x, kept = block(x, context, cache, query_positions)
            return x, state, kept
        start, stop = context.text
        first = start - self.slots
        x, found = block.normed_input(x, context)
        normed = found.normed
        text, kept = normed[:, start:stop], state.normed.astype(normed.dtype)
        real = context.mask[:, start:stop].astype(state.gates.dtype)
        normed = jnp.concatenate([normed[:, :first], kept, normed[:, start:]], axis=1)
        wanted = query_positions
        if wanted is None:
            wanted = np.delete(np.arange(x.shape[1]), np.s_[first:start])
            wanted = jnp.broadcast_to(wanted, (len(x), len(wanted)))
        y, cache = block(x, context, None, wanted, found._replace(normed=normed))
        if query_positions is None:
            y = jnp.concatenate([y[:, :first], x[:, first:start], y[:, first:]], axis=1)
        seen = jnp.concatenate([state.normed, text.astype(jnp.float32)], axis=1)
        return y, KeptTokens(seen, jnp.concatenate([state.gates, real], axis=1)), cache

    def next_state(
        self, state: KeptTokens, x: jax.Array, memory_places: int, backbone: Backbone
    ) -> KeptTokens:
        held, real = jnp.split(state.gates[0], [self.slots], axis=1)
        text = state.normed[self.gate_layer, :, self.slots :]
        opened = jnp.where(real > 0, gate(self._given(text), self.threshold), 0)
        gates = jnp.concatenate([held, opened], axis=1)
        # Stable: of equals the later ones stand behind.
        largest = jnp.argsort(gates, axis=1, stable=True)[:, -self.slots :]
        chosen = jnp.sort(largest, axis=1)
        # What is kept is kept whole; only the gradient sees how far the gate opened.
        whole = (opened > 0) + (opened - jax.lax.stop_gradient(opened))
        scale = jnp.concatenate([jnp.ones_like(held), whole], axis=1)

        def choose(normed: jax.Array) -> jax.Array:
            return gather_positions(normed * scale[..., None], chosen)

        gates = gather_positions(gates, chosen)
        normed = jax.vmap(choose)(state.normed)
        return KeptTokens(normed, jnp.broadcast_to(gates, (len(normed), *gates.shape)))

    # Gates.

    def gate(self, x: jax.Array) -> jax.Array:
        return gate(x)

    def gate_features(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None
    ) -> jax.Array:
        x, context = model.enter(memory, segment, prompt)
        start, stop = context.text

        def body(x: jax.Array, inputs: Any):
            params, state = inputs
            return model.run_layer(params, x, state, memory.started, context)[0], None

        below = jax.tree.map(lambda a: a[: self.gate_layer], (model.stacked_params(), memory.state))
        x, _ = jax.lax.scan(body, x, below)
        block, _, _ = model.layer_at(self.gate_layer, memory)
        _, found = block.normed_input(x, context)
        return found.normed[:, start:stop].astype(jnp.float32)

    def gate_inputs(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None, depth: int
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        return [], [self._given(self.gate_features(model, memory, segment, prompt))]

    def _given(self, text: jax.Array) -> jax.Array:
        """What the gates of tokens are given, f32[B, L] of `gate_features`."""
        return text @ self.beta[...] + self.beta_bias[...]

    def openings(self, given: list[jax.Array]) -> jax.Array:
        return jnp.clip(gate(jnp.stack(given), self.threshold), 0, 1)

    # Looking inside.

    def inspect_segment(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None
    ) -> jax.Array:
        """How far each token of the text opens its gate, one row."""
        given = self.gate_inputs(model, memory, segment, prompt, model.backbone.layers)[1]
        return jnp.where(jnp.asarray(segment.mask), self.openings(given)[:, 0], 0)

    def state_change(self, old: KeptTokens, new: KeptTokens) -> np.ndarray:
        """How far the sum of what a layer keeps moved, relative to its size: f32[layers]."""
        sums = (np.asarray(x.normed).sum(axis=(1, 2)) for x in (old, new))
        return relative_change(*sums)

    # What it says of itself.

    @classmethod
    def kept_tokens(cls, config: settings.Model) -> int:
        return cls.options(config).slots

    @classmethod
    def gate_layer_of(cls, config: settings.Model) -> int:
        """Number of the layer, from 0, whose input opens the gates."""
        asked = cls.options(config).gate_layer
        return asked - 1 if asked else config.layers * 3 // 5

    @classmethod
    def check(cls, config: settings.Model) -> None:
        if cls.gate_layer_of(config) >= config.layers:
            raise ConfigError(
                f"model.cell_options.gate_layer is {cls.options(config).gate_layer}, but there are"
                f" {config.layers} layers: take one of them, or 0."
            )
        if len(config.gate_threshold) > 1:
            raise ConfigError(
                f"model.gate_threshold has {len(config.gate_threshold)} numbers, but tokens of"
                " model.cell=kv have one gate for all layers: give one number, or none."
            )

    @classmethod
    def describe(cls, config: settings.Model) -> str:
        return f"keys and values of {cls.kept_tokens(config):,} tokens"

    def weights(self) -> dict[str, WeightInfo]:
        return {
            "beta": WeightInfo((None,), exact=True),
            "beta_bias": WeightInfo((), exact=True),
        }

    @classmethod
    def layer_flops(cls, config: settings.Model, places: int) -> float:
        kept, backbone = cls.kept_tokens(config), BACKBONES[config.backbone]
        flops = backbone.layer_flops(config, kept, 0, 0, True)  # keys and values
        return flops + 4.0 * config.width * places * kept  # scores

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        kept = cls.kept_tokens(config)
        # Read, chosen from, written; scores and softmax.
        moved = 4.0 * (3 * kept + 2 * config.segment_tokens) * config.width
        return batch * (moved + 2.0 * config.heads * places * kept * (4.0 + size))

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        return False  # nobody else has it: our own files say so
