"""The memory cell contract: what segments hand on, and how it is read and written.

A cell is one file with one class. Register it with `@CELLS.register("name")`; a config names it as
`model.cell`. It says which memory tokens stand around a segment, what a layer does beside its
block, and how the next state is made; `models.recurrent` does all else. A segment that is all
padding leaves the state as it was, bit for bit: the runner sees to that. `rmt.py` is the shortest
example; docs/howto/write_cell.md walks through one.

Letters as in `rmt_jax.types`: B texts, N places, M memory tokens, D width, L tokens of a segment.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError, NoOptions
from rmt_jax.models.backbones import Backbone, Block
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.ops.draw import normal
from rmt_jax.registry import Registry
from rmt_jax.types import Prompt, Segment, WeightInfo

CELLS: "Registry[type[MemoryCell]]" = Registry(
    "memory cell", "config.model.cell", "rmt_jax.models.cells"
)


class Memory(NamedTuple):
    """The whole carry of the recurrence; float32 whatever the compute dtype is."""

    state: Any  # of the cell: see its `initial_state`
    started: jax.Array  # bool[B]  a segment with tokens was read


class TheirConfig(NamedTuple):
    """Of a class that others made: this cell around a backbone, whose config is inside its own."""

    model_type: str  # of config.json
    required: Mapping[str, Any]  # what it must say, where it says it
    classes: Mapping[str, Mapping[str, Any]]  # name of a class -> the cell's settings


class MemoryCell(nnx.Module):
    """No memory: every segment for itself. Also the default of everything a cell may say.

    A cell of your own sets in `__init__(config, backbone, rngs)` whatever weights it has. Weights
    that each layer has its own of go into one module, `self.layers`, stacked with the layer as the
    first axis; `layer` gets its slice.
    """

    Options: ClassVar[type] = NoOptions  # a frozen dataclass of settings beyond `config.Model`'s
    # Memory tokens in front of the text (read) and behind it (write)?
    reads: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    # Does each layer keep a state of its own? Then every array of the state has the layer as its
    # first axis and the text as its second; else the text is first.
    layerwise: ClassVar[bool] = False
    # Why layers can't run on the diagonal schedule, as the end of a sentence; '': they can.
    not_diagonal: ClassVar[str] = "it has no memory, and its segments do not depend on each other"
    # Is the diagonal the faster schedule for one text on a GPU?
    prefers_diagonal: ClassVar[bool] = False
    # May the places of a segment stand in another order while the layers run?
    reorders: ClassVar[bool] = True
    # Do the memory tokens behind the text see each other, later ones too? No fused kernel serves.
    joint_writing: bool = False
    # Set where a text is read segment by segment and no gradient will be asked for: exact savings
    # that a gradient, or layers side by side, would not have.
    only_reads: bool = False
    # What a row of `state_change` is; what a row and a value of `inspect_segment` are.
    state_row_label: ClassVar[str] = "memory token"
    view_labels: ClassVar[tuple[str, str]] = ("write token", "attention")

    def __init__(self, config: settings.Model, backbone: Backbone, rngs: nnx.Rngs):
        self.memory_tokens = config.memory_tokens if self.reads or self.writes else 0

    # What it computes.

    def initial_state(self, batch: int) -> Any:
        """The state before any text, for B = `batch` texts: a tree of float32 arrays."""
        return ()

    def token_embeddings(self, memory: Memory) -> jax.Array | None:
        """The memory tokens that stand around a segment, [B, M, D]; None: there are none."""
        return None

    def kept_places(self, memory: Memory) -> jax.Array | None:
        """bool[B, K]: which of K places between prompt and text hold a token that was kept of
        earlier segments. `layer` fills them; the text sees those that hold one. None: no places."""
        return None

    def before_layer(
        self, layer: Any, x: jax.Array, state: Any, context: AttentionContext
    ) -> jax.Array:
        """A layer's input x [B, N, D], with what its slice of the state adds."""
        return x

    def after_layer(
        self, layer: Any, x: jax.Array, state: Any, started: jax.Array, context: AttentionContext
    ) -> Any:
        """The layer's next state, of its output x [B, N, D]; x may hold only some places of the
        text, but always the write memory at its end. started bool[B]: text was read before."""
        return state

    def layer(
        self,
        block: Block,
        layer: Any,
        x: jax.Array,
        state: Any,
        started: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, KVCache]:
        """One layer with its memory: (x, the layer's next state, the cache of these places).

        block: the backbone's block of this layer. layer: this cell's `layers`, of this layer.
        cache, query_positions: as in `Block.__call__`.
        """
        x = self.before_layer(layer, x, state, context)
        x, kept = block(x, context, cache, query_positions)
        if query_positions is not None:  # what is left ends with write memory, wherever that stood
            context = replace(context, packed=False)
        return x, self.after_layer(layer, x, state, started, context), kept

    def next_state(self, state: Any, x: jax.Array, memory_places: int, backbone: Backbone) -> Any:
        """The state after the segment, by default `state`: of a layerwise cell what the layers made
        of it, else the state before the segment. x: the last layer's output, of which only the last
        `memory_places`, the write memory, are sure to be there."""
        return state

    def layer_constants(self) -> dict[str, jax.Array]:
        """Arrays that are no weights, layer first: `layer` has its slices as `layer.constants`."""
        return {}

    # Weights, by their names 'memory/tokens', that are drawn with the deviation of the embedding:
    # they are scaled where a training starts from another embedding.
    scaled_by_embedding: ClassVar[frozenset[str]] = frozenset()

    # Gates, of a cell that has them: `rmt_jax.training.gates` teaches these.
    has_gates: ClassVar[bool] = False
    # Does a token have one gate for all layers, made of `gate_features`? `gate_weights` are then
    # the cell's own, a vector and a number.
    one_gate: ClassVar[bool] = False
    gate_weights: ClassVar[tuple[str, ...]] = ()  # of `self.layers`: what gates are made by

    # Looking inside.

    def inspect_segment(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None
    ) -> jax.Array:
        """What people may see of one segment, f32[R, L]: R rows over the text's places. By default
        the attention of each write token to the text, mean over layers and heads (R = 0 where there
        is none). `model` is the `RecurrentModel` that this cell is part of; B = 1."""
        return model.write_attention(memory, segment, prompt)

    def state_change(self, old: Any, new: Any) -> np.ndarray:
        """‖new - old‖ / ‖old‖ of each row of the state, f32[R], of one text; of a layerwise state
        the mean over layers."""
        if not jax.tree.leaves(new):
            return np.zeros(1, np.float32)
        a, b = (np.asarray(jax.tree.leaves(x)[0]) for x in (old, new))
        return relative_change(*(x.reshape(-1, *x.shape[-2:]) for x in (a, b))).mean(axis=0)

    # Gates, of a cell with `has_gates`.

    def gate(self, x: jax.Array) -> jax.Array:
        """How far a gate opens that is given x f32[...]: from 0 to 1, once it is clipped."""
        raise NotImplementedError

    def gate_inputs(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None, depth: int
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Of a segment read with `memory`: x after each of the first `depth` - 1 layers, [B, N, D],
        and what the gates of the first `depth` are given, before `gate`, f32[B, L]; with `one_gate`
        what that is given. `model`: the `RecurrentModel` that this cell is part of."""
        raise NotImplementedError

    def gate_features(
        self, model: Any, memory: Memory, segment: Segment, prompt: Prompt | None
    ) -> jax.Array:
        """With `one_gate`: what the gate of each place of a segment is a linear map of,
        f32[B, L, D]. `model`: the `RecurrentModel` that this cell is part of."""
        raise NotImplementedError

    def openings(self, given: list[jax.Array]) -> jax.Array:
        """How far gates open that are given f32[B, L], one of each of the first layers or one for
        all, with the config's threshold: f32[layers or 1, B, L]."""
        raise NotImplementedError

    # What it says of itself, without weights.

    @classmethod
    def check(cls, config: settings.Model) -> None:
        """Raises ConfigError for settings that this cell can't have."""
        if (cls.reads or cls.writes) and config.memory_tokens == 0:
            raise ConfigError(
                f"model.cell '{config.cell}' needs memory tokens, but model.memory_tokens is 0: set"
                " it to 1 or more, or take a cell that has none."
            )

    @classmethod
    def options(cls, config: settings.Model) -> Any:
        """`config.cell_options` as the `Options` of this cell."""
        return settings.build_options(cls.Options, config.cell_options, "model.cell_options")

    @classmethod
    def token_copies(cls) -> int:
        """How often the M memory tokens stand in a segment."""
        return cls.reads + cls.writes

    @classmethod
    def kept_tokens(cls, config: settings.Model) -> int:
        """K of `kept_places`."""
        return 0

    @classmethod
    def describe(cls, config: settings.Model) -> str:
        """What the memory is, in a few words."""
        return f"{config.memory_tokens} memory tokens" if cls.token_copies() else "no memory"

    def weights(self) -> dict[str, WeightInfo]:
        """Axes, kind and precision of every weight, by its name below `memory/`."""
        return {}

    @classmethod
    def layer_flops(cls, config: settings.Model, places: int) -> float:
        """FLOPs that it adds to a layer's forward pass over N `places` of one text."""
        return 0.0

    @classmethod
    def layer_bytes(cls, config: settings.Model, batch: int, places: int, size: int) -> float:
        """Bytes that it adds to what a layer's forward pass moves; numbers of `size` bytes."""
        return 0.0

    # The layout of checkpoints that others made (the authors' code).

    wrapped: ClassVar[bool] = True  # is the backbone inside their `memory_cell.model.`?
    theirs: ClassVar[Mapping[str, str]] = {}  # their name outside the layers -> ours
    their_layer: ClassVar[Mapping[str, str]] = {}  # their name in a layer -> ours
    their_block: ClassVar[str] = ""  # what stands before the backbone's names in a layer: 'layer.'
    saves_layers_twice: ClassVar[bool] = False
    their_config: ClassVar[TheirConfig | None] = None
    in_pytorch: ClassVar[bool] = True  # does PyTorch code of others know this memory?

    @classmethod
    def recognises(cls, weights: Mapping[str, np.ndarray]) -> bool:
        """Are weights, by name below `memory/`, this cell's? Asked where nothing says the cell."""
        return not weights and not cls.token_copies()

    @classmethod
    def sizes_of(
        cls, said: Mapping[str, Any], weights: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], list[str]]:
        """Fields of `config.Model` of such weights beside what a config.json says, and what had to
        be guessed, in words."""
        return {"memory_tokens": 0}, []


def relative_change(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """‖new - old‖ / ‖old‖ over the last axis; from zero the first write is a full change."""
    size = np.linalg.norm(old, axis=-1)
    first = np.linalg.norm(new, axis=-1) + 1e-9
    return np.linalg.norm(new - old, axis=-1) / np.where(size > 0, size, first)


def check_diagonal(name: str) -> None:
    """Raises ConfigError for a cell that the diagonal schedule cannot run."""
    if CELLS[name].not_diagonal:
        able = [other for other in CELLS if not CELLS[other].not_diagonal]
        raise ConfigError(
            f"model.schedule=diagonal does not go with model.cell={name}:"
            f" {CELLS[name].not_diagonal}. Take model.cell={', '.join(able[:-1])} or {able[-1]},"
            " whose layers keep their own memory, or model.schedule=auto."
        )


def new_memory_tokens(shape: tuple[int, ...], backbone: Backbone, rngs: nnx.Rngs) -> nnx.Param:
    """Memory tokens [.., M, D] as the authors draw them: normal, with one scalar deviation, that of
    the whole embedding matrix."""
    return nnx.Param(normal(rngs, shape, backbone.embedding_std()))


def repeat_for_texts(tokens: jax.Array, batch: int) -> jax.Array:
    """[M, D] -> [B, M, D]."""
    return jnp.broadcast_to(tokens, (batch, *tokens.shape))
