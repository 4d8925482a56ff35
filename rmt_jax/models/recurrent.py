"""A backbone with a memory cell: reads one segment with the memory that the last one left.

`initial(batch) -> Memory`, `step(memory, segment, prompt) -> hidden, Memory`. A segment that is all
padding leaves the memory as it was, bit for bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models import layout, platform
from rmt_jax.models.backbones import BACKBONES, Backbone, Block
from rmt_jax.models.cells import CELLS, Memory, MemoryCell
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.layout import Part
from rmt_jax.models.lora import Adapters
from rmt_jax.models.ops import splash
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.models.prompts import TaskPrompt
from rmt_jax.types import Prompt, Segment, WeightInfo


class CellLayer(NamedTuple):
    """What a memory cell has of one layer."""

    weights: Any  # its `layers` module, of this layer; None for a cell without
    constants: dict[str, jax.Array]


class RecurrentModel(nnx.Module):
    """Backbone, memory cell and task prompt, as `model.backbone` and `model.cell` name them."""

    def __init__(
        self,
        config: settings.Model,
        prompt: settings.Prompt,
        vocab: int,
        tasks: int,
        rngs: nnx.Rngs,
        lora: settings.Lora | None = None,
    ):
        """lora: adapters beside the backbone's matrices; None: no adapters."""
        backbone, cell = BACKBONES[config.backbone], CELLS[config.cell]
        self.cell, self.schedule = config.cell, config.schedule
        self.unroll = 1 if config.scan_layers else config.layers
        self.own_rows = config.position_layout == "wrap_pos"
        memory_rows = cell.token_copies() * config.memory_tokens if self.own_rows else 0
        rows = backbone.table_rows(config, memory_rows)
        self.backbone: Backbone = backbone(config, vocab, rows, rngs)  # pyright: ignore
        self.prompt = TaskPrompt(prompt, tasks, config.width, rngs)
        self.memory: MemoryCell = cell(config, self.backbone, rngs)
        if lora is not None:
            self.adapters = Adapters(self.backbone, lora, rngs)

    def weights(self) -> dict[str, WeightInfo]:
        """What is known of each weight, by its name 'backbone/wte'."""
        parts = {"backbone": self.backbone, "prompt": self.prompt, "memory": self.memory}
        said = {prefix: part.weights() for prefix, part in parts.items()}
        if hasattr(self, "adapters"):
            said["adapters"] = self.adapters.weights(self.backbone)
        return {f"{p}/{name}": info for p, infos in said.items() for name, info in infos.items()}

    def initial(self, batch: int) -> Memory:
        """The memory before any text, of B = `batch` texts."""
        return Memory(self.memory.initial_state(batch), jnp.zeros(batch, bool))

    def step(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None = None,
        places: jax.Array | None = None,
        layer_params: Sequence[Any] = (),
    ) -> tuple[jax.Array, Memory]:
        """Reads one segment. Returns hidden [B, L, D] after the final norm, and `Memory`.

        places i32[B, n], in the segment: hidden is wanted there only, [B, n, D]. The last layer
        leaves out the rest, which nothing else looks at. layer_params: `per_layer_params()`, for a
        loop.
        """
        x, context = self.enter(memory, segment, prompt)
        wanted = None
        if places is not None:
            stop = x.shape[1] - context.write_tokens
            write = jnp.arange(stop, x.shape[1])
            write = jnp.broadcast_to(write, (len(x), context.write_tokens))
            wanted = jnp.concatenate([stop - segment.tokens.shape[1] + places, write], axis=1)
        x, state = self._through(x, memory, context, wanted, layer_params)
        return self._leave(memory, segment, x, state, context, everywhere=places is None)

    def peek(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None,
        places: jax.Array,
        layer_params: Sequence[Any] = (),
    ) -> jax.Array:
        """Hidden [B, n, D] at places i32[B, n] of a segment, as `step`'s, that leaves no trace in
        the memory."""
        x, context = self.enter(memory, segment, prompt, decoding=True)
        wanted = x.shape[1] - segment.tokens.shape[1] + places
        return self.backbone.final_norm(self._through(x, memory, context, wanted, layer_params)[0])

    def update_memory(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None = None,
        layer_params: Sequence[Any] = (),
    ) -> Memory:
        """`step` where only the memory is wanted."""
        nowhere = jnp.zeros((memory.started.shape[0], 0), jnp.int32)
        return self.step(memory, segment, prompt, nowhere, layer_params)[1]

    def embed_prompt(self, prompt: Prompt | None) -> Prompt | None:
        """The prompt with its embeddings, to be made once before a loop over segments."""
        return self.prompt.embed(self.backbone, prompt)

    def drift(self, old: Memory, new: Memory) -> jax.Array:
        """How far a segment moved the memory, f32[B]: the norm of the change over that of the new
        state, averaged over layers and arrays. Relative, or a smaller memory would seem calmer."""

        def change(old, new):
            axes = tuple(range(self.batch_axis + 1, old.ndim))
            # The root's slope has no bound at zero, where an empty segment stands.
            moved = jnp.sqrt(jnp.square(new - old).sum(axes) + 1e-8)
            size = jnp.sqrt(jnp.square(new).sum(axes) + 1e-6)
            ratio = moved / jax.lax.stop_gradient(size)
            return ratio.reshape(-1, ratio.shape[-1]).mean(axis=0)

        pairs = zip(jax.tree.leaves(old.state), jax.tree.leaves(new.state), strict=True)
        changes = [change(*pair) for pair in pairs]
        return sum(changes, jnp.zeros(old.started.shape)) / max(1, len(changes))

    @property
    def batch_axis(self) -> int:
        """Of the arrays in `Memory.state`."""
        return int(self.memory.layerwise)

    # The parts of a step.

    def enter(
        self, memory: Memory, segment: Segment, prompt: Prompt | None, decoding: bool = False
    ) -> tuple[jax.Array, AttentionContext]:
        """The input of the first layer, with the memory tokens that the cell has (no write memory
        while decoding)."""
        embedded = segment.embedded
        if embedded is None:
            embedded = self.backbone.embed(segment.tokens)
        text = Part(embedded, jnp.asarray(segment.mask), True)
        embedded_prompt = self.prompt(self.backbone, prompt, memory.started)
        parts = [text] if embedded_prompt is None else [Part(*embedded_prompt, True), text]
        kept = self.memory.kept_places(memory)
        if kept is not None:  # each layer fills them
            empty = jnp.zeros((*kept.shape, embedded.shape[-1]), embedded.dtype)
            parts.insert(-1, Part(empty, kept))
        reads = writes = 0
        tokens = self.memory.token_embeddings(memory)
        if tokens is not None:
            mask = jnp.ones(tokens.shape[:2], bool)
            held = Part(tokens.astype(self.backbone.dtype), mask)
            reads = self.memory.memory_tokens if self.memory.reads else 0
            writes = self.memory.memory_tokens if self.memory.writes and not decoding else 0
            parts = [held] * bool(reads) + parts
            parts = parts + [held._replace(positions=self._write_rows())] * bool(writes)
        joint = self.memory.joint_writing and writes > 0
        return layout.join(self.backbone, parts, reads, writes, joint)

    def layers(
        self,
        x: jax.Array,
        memory: Memory,
        context: AttentionContext,
        cache: KVCache | None = None,
        keep_cache: bool = False,
        query_positions: jax.Array | None = None,
        layer_params: Sequence[Any] = (),
    ) -> tuple[jax.Array, Any, KVCache | None]:
        """All layers over x [B, N, D]: x, the new state of layerwise cells and, with `keep_cache`,
        the `KVCache` of these places. Everything that a layer owns has the layer as its first axis.

        query_positions i32[B, n]: of the last layer x is wanted at these places only, [B, n, D].
        """

        def body(x, inputs, wanted=None):
            params, state, cache = inputs
            x, state, kept = self.run_layer(
                params, x, state, memory.started, context, cache, wanted
            )
            return x, (state, kept if keep_cache else None)

        body = keeping(body, self.unroll > 1)
        own = (self.layer_state(memory), cache)
        if self.unroll == 1:
            x, (state, kept) = jax.lax.scan(body, x, (self.stacked_params(), *own))
            x = x if query_positions is None else gather_positions(x, query_positions)
            return x, state, kept
        outputs = []
        each = zip(
            layer_params or self.per_layer_params(), _unstacked(own, self.unroll), strict=True
        )
        for number, (params, own) in enumerate(each, start=1):
            wanted = query_positions if number == self.unroll else None
            x, output = body(x, (params, *own), wanted)
            outputs.append(output)
        state, kept = jax.tree.map(lambda *each: jnp.stack(each), *outputs)
        return x, state, kept

    def run_layer(
        self,
        params: Any,
        x: jax.Array,
        state: Any,
        started: jax.Array,
        context: AttentionContext,
        cache: KVCache | None = None,
        query_positions: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, KVCache]:
        """One layer, of which `params` and `state` are the slices. Returns x, state, cache."""
        block, layer = self._layer_modules(params)
        return self.memory.layer(block, layer, x, state, started, context, cache, query_positions)

    def layer_at(self, number: int, memory: Memory) -> tuple[Block, CellLayer, Any]:
        """The block of one layer, what the cell has of it, and its slice of the state."""
        params, state = jax.tree.map(
            lambda x: x[number], (self.stacked_params(), self.layer_state(memory))
        )
        return *self._layer_modules(params), state

    def layer_state(self, memory: Memory) -> Any:
        """What each layer carries from segment to segment, layer first."""
        return memory.state if self.memory.layerwise else ()

    def stacked_params(self) -> dict[str, Any]:
        """Arrays of all layers, layer first: what `run_layer` takes slices of."""
        params = {"block": nnx.split(self.backbone.blocks)[1]}
        if hasattr(self.memory, "layers"):
            params["memory"] = nnx.split(self.memory.layers)[1]  # pyright: ignore
        if hasattr(self, "adapters"):
            params["adapters"] = nnx.split(self.adapters)[1]
        constants = {"block": self.backbone.layer_constants()}
        return params | {"constants": constants | {"memory": self.memory.layer_constants()}}

    def per_layer_params(self) -> list[Any]:
        """`stacked_params` of each layer by itself; empty where layers run as a compiled loop.

        Made once before a loop over segments and handed to `step`: inside, every segment would copy
        all weights, and put the layers' gradients together again (GPT-2 base, 4 segments, two CPU
        cores: a tenth of a train step).
        """
        return [] if self.unroll == 1 else _unstacked(self.stacked_params(), self.unroll)

    def packs(self, x: jax.Array) -> bool:
        """Whether padding moves to the end of x [B, N, D] while the layers run."""
        fixed = self.memory.joint_writing or not self.memory.reorders
        return not fixed and self.backbone.fuses_attention(x.shape[:2])  # pyright: ignore

    def write_attention(self, memory: Memory, segment: Segment, prompt: Prompt | None) -> jax.Array:
        """Attention f32[M, L] of each write token to the text of one segment, B = 1, mean over
        layers and heads; f32[0, L] where there are no write tokens or no attention."""
        x, context = self.enter(memory, segment, prompt)
        length, seen = segment.tokens.shape[1], []
        for number in range(self.backbone.layers):
            block, layer, state = self.layer_at(number, memory)
            before = self.memory.before_layer(layer, x, state, context)
            weights = block.attention_weights(before, context)
            if context.write_tokens and weights is not None:
                seen.append(weights[:, :, -context.write_tokens :])
            x, _, _ = self.memory.layer(block, layer, x, state, memory.started, context)
        if not seen:
            return jnp.zeros((0, length))
        mean = jnp.stack(seen).mean(axis=(0, 1, 2))  # layers, batch of one, heads
        start, stop = context.text
        return mean[:, start:stop]

    def _through(
        self,
        x: jax.Array,
        memory: Memory,
        context: AttentionContext,
        wanted: jax.Array | None,
        layer_params: Sequence[Any],
    ) -> tuple[jax.Array, Any]:
        """`layers` over a whole segment, packed where that serves."""
        if not self.packs(x):
            return self.layers(
                x, memory, context, query_positions=wanted, layer_params=layer_params
            )[:2]
        order = layout.packing_order(context.mask)
        x, context = layout.pack(self.backbone, x, context, order)
        if wanted is not None:
            wanted = gather_positions(order.inverse, wanted)
            return self.layers(
                x, memory, context, query_positions=wanted, layer_params=layer_params
            )[:2]
        x, state, _ = self.layers(x, memory, context, layer_params=layer_params)
        return layout.unpack(x, order), state

    def _leave(
        self,
        memory: Memory,
        segment: Segment,
        x: jax.Array,
        state: Any,
        context: AttentionContext,
        everywhere: bool,
    ) -> tuple[jax.Array, Memory]:
        """From the last layer's output, `everywhere` or of the wanted places and the write memory,
        to hidden [B, L or n, D] and the next `Memory`."""
        stop = x.shape[1] - context.write_tokens
        text = x[:, stop - segment.tokens.shape[1] if everywhere else 0 : stop]
        state = state if self.memory.layerwise else memory.state
        new = self.memory.next_state(state, x, context.write_tokens, self.backbone)
        moved = jnp.asarray(segment.mask).any(axis=1)

        def keep(new, old):
            shape = [1] * old.ndim
            shape[self.batch_axis] = -1
            return jnp.where(moved.reshape(shape), new.astype(old.dtype), old)

        state = jax.tree.map(keep, new, memory.state)
        return self.backbone.final_norm(text), Memory(state, memory.started | moved)

    def _layer_modules(self, params: dict[str, Any]) -> tuple[Block, CellLayer]:
        block = nnx.merge(nnx.split(self.backbone.blocks)[0], params["block"])
        block.constants = nnx.data(params["constants"]["block"])
        if "adapters" in params:
            nnx.merge(nnx.split(self.adapters)[0], params["adapters"]).attach(block)
        own = None
        if "memory" in params:
            own = nnx.merge(nnx.split(self.memory.layers)[0], params["memory"])  # pyright: ignore
        return block, CellLayer(own, params["constants"]["memory"])

    def _write_rows(self) -> jax.Array | None:
        if not self.own_rows:
            return None
        rows = self.backbone.position_rows
        return jnp.arange(rows - self.memory.memory_tokens, rows)[None]


def keeping(layer: Any, unrolled: bool = False) -> Any:
    """`layer` with what a backward pass keeps of it on a TPU: its products with weights and what
    attention gave. What stands between is made again; else half of the bytes that a train step of
    GPT-2 base moves are its way to memory and back, and twice as much is held."""
    if platform.current() != "tpu":
        return layer
    # Inside a loop, common subexpressions can't undo it.
    return jax.checkpoint(layer, prevent_cse=unrolled, policy=splash.kept())


def _unstacked(tree: Any, layers: int) -> list[Any]:
    """One tree per layer. `split`, since its gradient is one concatenation; that of slices is a sum
    of arrays as large as all layers."""
    leaves, shape = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, (1,) * layers) for leaf in leaves]
    each = ([part[layer][0] for part in parts] for layer in range(layers))
    return [jax.tree.unflatten(shape, one) for one in each]
