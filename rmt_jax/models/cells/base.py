"""Memory cells: one interface, five tenants.

`initial(batch) -> Memory`, `step(memory, segment, prompt) -> hidden, Memory`. A segment that is all
padding leaves the memory as it was, bit for bit. A cell differs from the plain backbone in what
stands around the text and in what a layer does beside its block, and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.backbones.gpt2 import Backbone, Past, View
from rmt_jax.models.ops import attention
from rmt_jax.models.ops.fused import permuted, rows
from rmt_jax.models.prompts import TaskPrompt
from rmt_jax.types import Prompt, Segment


class Memory(NamedTuple):
    """The whole carry of the recurrence; float32 whatever the compute dtype is."""

    # none: () | rmt: [B, M, D] | prmt: [layers, B, M, D] | armt, delta: `Associations`
    state: Any
    started: jax.Array  # bool[B]  a segment with tokens was read


class Part(NamedTuple):
    """A stretch of the model's input: embeddings [B, n, D] and mask bool[B, n]."""

    embedded: jax.Array
    mask: jax.Array
    convolved: bool = False  # the short convolution runs over it
    rows: jax.Array | None = None  # own rows of the position table (`wrap_pos`)


class Plain(nnx.Module):
    """No memory: every segment for itself. Also what the other cells have in common."""

    reading = writing = False  # memory tokens in front of the text, behind it
    batch_axis = 0  # of the arrays in `Memory.state`
    packs = True  # inside the layers, places may stand in any order that attention likes

    def __init__(
        self,
        config: settings.Model,
        prompt: settings.Prompt,
        vocab: int,
        tasks: int,
        rngs: nnx.Rngs,
    ):
        self.memory_tokens, self.heads = config.memory_tokens, config.heads
        self.alibi = config.positions == "alibi"
        self.cell, self.schedule = config.cell, config.schedule
        self.wrapped = config.position_layout == "wrap_pos"
        self.backbone = Backbone(config, vocab, self.position_rows(config), rngs)
        self.prompt = TaskPrompt(prompt, tasks, config.width, rngs)

    @classmethod
    def position_rows(cls, config: settings.Model) -> int:
        """Rows of the position table; `wrap_pos` grows it by a row a memory token."""
        if config.positions != "learned":
            return 0
        grown = (cls.reading + cls.writing) * config.memory_tokens
        return config.max_positions + (grown if config.position_layout == "wrap_pos" else 0)

    def initial(self, batch: int) -> Memory:
        return Memory(self._initial_state(batch), jnp.zeros(batch, bool))

    def step(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None = None,
        places: jax.Array | None = None,
        slices: Sequence[Any] = (),
    ):
        """Reads one segment. Returns hidden [B, L, D] after the final LayerNorm, and `Memory`.

        places i32[B, n], in the segment: hidden is wanted there only, [B, n, D]. The last layer
        leaves out the rest, which nothing else looks at. slices: `self.slices()`, for a loop.
        """
        x, view = self.enter(memory, segment, prompt)
        top = None
        if places is not None:
            stop = x.shape[1] - view.writes
            write = jnp.broadcast_to(jnp.arange(stop, x.shape[1]), (len(x), view.writes))
            top = jnp.concatenate([stop - segment.tokens.shape[1] + places, write], axis=1)
        x, state = self._through(x, memory, view, top, slices)
        return self.leave(memory, segment, x, state, view)

    def glance(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None,
        places: jax.Array,
        slices: Sequence[Any] = (),
    ) -> jax.Array:
        """Hidden [B, n, D] at places i32[B, n] of a segment, as `step`'s, that leaves no trace in
        the memory."""
        x, view = self.enter(memory, segment, prompt, decoding=True)
        top = x.shape[1] - segment.tokens.shape[1] + places
        return self.backbone.ln_f(self._through(x, memory, view, top, slices)[0])

    def told(self, prompt: Prompt | None) -> Prompt | None:
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

    def remember(
        self,
        memory: Memory,
        segment: Segment,
        prompt: Prompt | None = None,
        slices: Sequence[Any] = (),
    ) -> Memory:
        """`step` where only the memory is wanted."""
        nowhere = jnp.zeros((memory.started.shape[0], 0), jnp.int32)
        return self.step(memory, segment, prompt, nowhere, slices)[1]

    def enter(
        self, memory: Memory, segment: Segment, prompt: Prompt | None, decoding: bool = False
    ) -> tuple[jax.Array, View]:
        """The input of the first layer: [read memory; prompt; text; write memory], as many as
        the cell has (no write memory while decoding)."""
        embedded = segment.embedded
        if embedded is None:
            embedded = self.backbone.embed(segment.tokens)
        text = Part(embedded, jnp.asarray(segment.mask), True)
        told = self.prompt(self.backbone, prompt, memory.started)
        parts = [text] if told is None else [Part(*told, True), text]
        reads = writes = 0
        tokens = self._memory_tokens(memory)
        if tokens is not None:
            mask = jnp.ones(tokens.shape[:2], bool)
            held = Part(tokens.astype(self.backbone.dtype), mask)
            reads = self.memory_tokens if self.reading else 0
            writes = self.memory_tokens if self.writing and not decoding else 0
            parts = [held] * bool(reads) + parts
            parts = parts + [held._replace(rows=self._write_rows())] * bool(writes)
        return self._join(parts, reads, writes)

    def layers(
        self,
        x: jax.Array,
        memory: Memory,
        view: View,
        past: Past | None = None,
        keep: bool = False,
        top: jax.Array | None = None,
        slices: Sequence[Any] = (),
    ) -> tuple[jax.Array, Any, Past | None]:
        """All layers over x [B, N, D]: x, the new state of layer-wise cells and, with `keep`, the
        `Past` of these places. Everything that a layer owns has the layer as its first axis.

        top i32[B, n]: of the last layer x is wanted at these places only, [B, n, D].
        """

        def body(x, inputs, top=None):
            weights, state, past = inputs
            x, state, seen = self.layer(weights, x, state, memory.started, view, past, top)
            return x, (state, seen if keep else None)

        own = (self._layer_state(memory), past)
        if self.backbone.unroll == 1:
            x, (state, seen) = jax.lax.scan(body, x, (self.layer_weights(), *own))
            return x if top is None else rows(x, top), state, seen
        kept = []
        each = zip(slices or self.slices(), _unstacked(own, self.backbone.unroll), strict=True)
        for layer, (weights, own) in enumerate(each, start=1):
            x, outputs = body(x, (weights, *own), top if layer == self.backbone.unroll else None)
            kept.append(outputs)
        state, seen = jax.tree.map(lambda *each: jnp.stack(each), *kept)
        return x, state, seen

    def _through(
        self, x: jax.Array, memory: Memory, view: View, top: jax.Array | None, slices: Sequence[Any]
    ) -> tuple[jax.Array, Any]:
        """`layers` over a whole segment. Where a fused kernel serves, all padding goes to the end
        meanwhile: behind everything real, it needs no mask."""
        if not self.may_pack(x):
            return self.layers(x, memory, view, top=top, slices=slices)[:2]
        order, inverse = self.orders(view.mask)
        x, view = self.pack(x, view, (order, inverse))
        if top is not None:
            return self.layers(x, memory, view, top=rows(inverse, top), slices=slices)[:2]
        x, state, _ = self.layers(x, memory, view, slices=slices)
        return permuted(x, inverse, order), state

    def orders(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of bool[..., N], i32[..., N] twice: the places with all padding at the end, and where
        each place went."""
        order = jnp.argsort(~mask, axis=-1, stable=True)
        return order, jnp.argsort(order, axis=-1)

    def pack(
        self, x: jax.Array, view: View, orders: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, View]:
        """x [B, N, D] in the first of `orders`, and its view."""
        mask = rows(view.mask, orders[0])
        packed = self.view(mask, view.sections, view.reads, view.writes, packed=True)
        return permuted(x, *orders), packed

    def may_pack(self, x: jax.Array) -> bool:
        """Whether padding may stand anywhere inside the layers, and a fused kernel serves."""
        block, (batch, places, width) = self.backbone.blocks, x.shape
        if not self.packs or not block.fused or block.conv_width:
            return False
        shape = (batch, places, self.heads, width // self.heads)
        return attention.available(x.dtype, shape, True, self.alibi) == "cudnn"

    def layer(
        self,
        weights: Any,
        x: jax.Array,
        state: Any,
        started: jax.Array,
        view: View,
        past: Past | None = None,
        top: jax.Array | None = None,
    ):
        """One layer, of which `weights` and `state` are the slices. Returns x, state, Past."""
        module = self._layer_module(weights)
        x = self._before(module, x, state, view)
        x, seen = module["block"](x, view, past, top)
        if top is not None:  # what is left ends with write memory, wherever that stood
            view = replace(view, packed=False)
        return x, self._after(module, x, state, started, view), seen

    def leave(self, memory: Memory, segment: Segment, x: jax.Array, state: Any, view: View):
        """From the last layer's output, all of it or the wanted places and the write memory, to
        hidden [B, L or n, D] and the next `Memory`."""
        stop = x.shape[1] - view.writes
        text = x[:, max(0, stop - segment.tokens.shape[1]) : stop]
        new = self._carry(state, x, view)
        moved = jnp.asarray(segment.mask).any(axis=1)

        def keep(new, old):
            shape = [1] * old.ndim
            shape[self.batch_axis] = -1
            return jnp.where(moved.reshape(shape), new.astype(old.dtype), old)

        state = jax.tree.map(keep, new, memory.state)
        return self.backbone.ln_f(text), Memory(state, memory.started | moved)

    def layer_weights(self) -> Any:
        """Arrays of all layers, layer first: what `layer` takes slices of."""
        return {name: nnx.split(module)[1] for name, module in self._stacked().items()}

    def slices(self) -> list[Any]:
        """`layer_weights` of each layer by itself; empty where layers run as a compiled loop.

        Made once before a loop over segments and handed to `step`: inside, every segment would copy
        all weights, and put the layers' gradients together again (GPT-2 base, 4 segments, two CPU
        cores: a tenth of a train step).
        """
        layers = self.backbone.unroll
        return [] if layers == 1 else _unstacked(self.layer_weights(), layers)

    def _layer_module(self, weights: Any) -> dict[str, Any]:
        modules = self._stacked().items()
        return {name: nnx.merge(nnx.split(module)[0], weights[name]) for name, module in modules}

    def _stacked(self) -> dict[str, nnx.Module]:
        return {"block": self.backbone.blocks, **self._own_modules()}

    def _join(self, parts: list[Part], reads: int, writes: int) -> tuple[jax.Array, View]:
        mask = jnp.concatenate([part.mask for part in parts], axis=1)
        positions = _count(mask)
        placed, sections, start = [], [], 0
        for part in parts:
            stop = start + part.embedded.shape[1]
            rows = positions[:, start:stop] if part.rows is None else part.rows
            placed.append(part.embedded + self.backbone.place(rows))
            if part.convolved:
                sections.append((start, stop))
            start = stop
        view = self.view(mask, tuple(sections), reads, writes)
        return jnp.concatenate(placed, axis=1), view

    def view(
        self,
        mask: jax.Array,
        sections: tuple[tuple[int, int], ...],
        reads: int,
        writes: int,
        packed: bool = False,
    ) -> View:
        """What a segment with mask bool[B, N] may see: everything real that is not behind it."""
        positions, places = _count(mask), mask.shape[1]
        causal = jnp.tril(jnp.ones((places, places), bool))
        bias = None
        if self.alibi:
            text = (jnp.arange(places) >= reads) & (jnp.arange(places) < places - writes)
            bias = attention.alibi(self.heads, positions, positions, text[:, None] & text[None])
        visible = causal & mask[:, None, :]
        return View(positions, mask, visible, bias, sections, reads, writes, packed)

    def _write_rows(self) -> jax.Array | None:
        if not self.wrapped:
            return None
        rows = self.backbone.wpe.shape[0]
        return jnp.arange(rows - self.memory_tokens, rows)[None]

    # What a cell may say differently.

    def _own_modules(self) -> dict[str, nnx.Module]:
        """Stacked modules of the cell's own, one slice a layer."""
        return {}

    def _initial_state(self, batch: int) -> Any:
        return ()

    def _memory_tokens(self, memory: Memory) -> jax.Array | None:
        """Embeddings of the memory tokens, [B, M, D]."""
        return None

    def _layer_state(self, memory: Memory) -> Any:
        """What each layer carries from segment to segment, layer first."""
        return ()

    def _before(self, module: Any, x: jax.Array, state: Any, view: View) -> jax.Array:
        return x

    def _after(self, module: Any, x: jax.Array, state: Any, started: jax.Array, view: View) -> Any:
        return state

    def _carry(self, state: Any, x: jax.Array, view: View) -> Any:
        return state


def _unstacked(tree: Any, layers: int) -> list[Any]:
    """One tree a layer. `split`, since its gradient is one concatenation; that of slices is a sum
    of arrays as large as all layers."""
    leaves, shape = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, (1,) * layers) for leaf in leaves]
    each = ([part[layer][0] for part in parts] for layer in range(layers))
    return [jax.tree.unflatten(shape, one) for one in each]


def _count(mask: jax.Array) -> jax.Array:
    """Positions i32[B, N]: real tokens in front; padding counts for nothing.

    The barrier has them stored. On a GPU XLA counted anew for every column of the input that it
    placed by them: half of the time on the diagonal schedule (benchmarks/H200.md).
    """
    count = jnp.cumsum(jnp.asarray(mask), axis=1, dtype=jnp.int32)
    return jnp.maximum(jax.lax.optimization_barrier(count) - 1, 0)


class RMT(Plain):
    """Memory tokens through the whole depth (Bulatov et al. 2022)."""

    reading = writing = True

    def __init__(self, config, prompt, vocab, tasks, rngs):
        super().__init__(config, prompt, vocab, tasks, rngs)
        # One scalar deviation over the whole embedding matrix, as the authors draw it.
        noise = jax.random.normal(rngs.params(), (config.memory_tokens, config.width))
        self.memory = nnx.Param(self.backbone.wte[...].std() * noise)

    def _initial_state(self, batch: int):
        return jnp.broadcast_to(self.memory[...], (batch, *self.memory.shape))

    def _memory_tokens(self, memory: Memory):
        return memory.state

    def _carry(self, state, x, view: View):
        return self.backbone.ln_f(x[:, -view.writes :])
