"""Cells whose layers each keep a memory of their own: PRMT, ARMT and delta.

Nothing passes from the top of one segment to the bottom of the next, so segment s of layer l needs
only segment s of layer l - 1 and segment s - 1 of layer l: these also run on the diagonal schedule.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.backbones.gpt2 import View
from rmt_jax.models.cells.base import Memory, Plain
from rmt_jax.models.ops.fused import product
from rmt_jax.types import Prompt, Segment

EPSILON = 1e-5  # beside every division by a normaliser, as in the authors' code


class Layerwise(Plain):
    """A state with the layer in front, of which each layer gets its own."""

    batch_axis = 1

    def _layer_state(self, memory: Memory):
        return memory.state


class PRMT(Layerwise):
    """Each layer owns M memory vectors; a layer's last M outputs are its state, which overwrites
    the first and last M places of its next input."""

    reading = writing = True

    def __init__(self, config, prompt, vocab, tasks, rngs):
        super().__init__(config, prompt, vocab, tasks, rngs)
        shape = (config.layers, config.memory_tokens, config.width)
        self.memory = nnx.Param(jax.random.normal(rngs.params(), shape))

    def _initial_state(self, batch: int):
        layers, tokens, width = self.memory.shape
        return jnp.broadcast_to(self.memory[...][:, None], (layers, batch, tokens, width))

    def _memory_tokens(self, memory: Memory):
        return jnp.zeros_like(memory.state[0])  # each layer overwrites these places

    def _before(self, module: Any, x: jax.Array, state: jax.Array, view: View):
        if view.reads:
            x = x.at[:, : view.reads].set(state.astype(x.dtype))
        if view.writes:
            x = view.write(x, state.astype(x.dtype))
        return x

    def _after(self, module: Any, x: jax.Array, state: jax.Array, started, view: View):
        return view.written(x).astype(state.dtype) if view.writes else state


class Associations(NamedTuple):
    """The associative memory of every layer (first axis; absent inside a layer)."""

    matrix: jax.Array  # f32[layers, B, K, D]  A: sum of key ⊗ value
    norm: Any  # ARMT: f32[layers, B, K]  z: sum of keys; delta: ()


class Associative(nnx.Module):
    """The maps around a layer's associative memory, stacked; weights drawn as torch's Linear."""

    def __init__(self, config: settings.Model, rngs: nnx.Rngs):
        layers, width, keys = config.layers, config.width, config.d_mem
        bound = width**-0.5

        def uniform(*shape):
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.nu = config.nu
        self.query = uniform(layers, width, keys)
        self.key = uniform(layers, width, keys)
        self.value = nnx.Param(jnp.zeros((layers, width, width)))
        self.beta = uniform(layers, width, 1)
        self.beta_bias = uniform(layers, 1)

    def features(self, x: jax.Array) -> jax.Array:
        """DPFP-nu (Schlag et al. 2021), f32[..., 2 d nu] of [..., d]: products of rolled halves."""
        x = x.astype(jnp.float32)
        r = jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)
        rolled = [r * jnp.roll(r, j, axis=-1) for j in range(1, self.nu + 1)]
        return jnp.concatenate(rolled, axis=-1)


class ARMT(Layerwise):
    """Associative matrices per layer (Rodkin et al. 2024): memory tokens stand at the end only,
    the same in every segment, and write what they have gathered into the layer's matrix."""

    writing = True

    def __init__(self, config, prompt, vocab, tasks, rngs):
        super().__init__(config, prompt, vocab, tasks, rngs)
        self.rows = 2 * config.nu * config.d_mem
        noise = jax.random.normal(rngs.params(), (config.memory_tokens, config.width))
        self.memory = nnx.Param(self.backbone.wte[...].std() * noise)
        self.associative = Associative(config, rngs)

    def _initial_state(self, batch: int):
        layers, width = self.associative.value.shape[:2]
        shape = (layers, batch, self.rows)
        return Associations(jnp.zeros((*shape, width)), jnp.zeros(shape))

    def _memory_tokens(self, memory: Memory):
        batch = memory.started.shape[0]
        return jnp.broadcast_to(self.memory[...], (batch, *self.memory.shape))

    def _own_modules(self):
        return {"associative": self.associative}

    def _before(self, module: Any, x: jax.Array, state: Associations, view: View):
        maps = module["associative"]
        query = maps.features(product(x, maps.query[...].astype(x.dtype)))
        return x + _recall(state, query).astype(x.dtype)

    def _after(self, module: Any, x: jax.Array, state: Associations, started, view: View):
        """All M tokens write against the old matrix and the old norm."""
        if not view.writes:
            return state
        maps = module["associative"]
        tokens = view.written(x)
        key = maps.features(product(tokens, maps.key[...].astype(x.dtype)))
        value = product(tokens, maps.value[...].astype(x.dtype)).astype(jnp.float32)
        strength = tokens.astype(jnp.float32) @ maps.beta[...] + maps.beta_bias[...]
        known = started[:, None]
        old = jnp.where(known[:, :, None], _recall(state, key), 0)
        overlap = jnp.einsum("bk,bmk->bm", state.norm, key) + EPSILON
        news = 1 - overlap / (jnp.square(key).sum(axis=-1) + EPSILON)
        gamma = jax.lax.stop_gradient(jnp.where(known, jnp.clip(news, 0, 1), 1))
        written = jax.nn.sigmoid(strength) * (value - old)
        return Associations(
            state.matrix + jnp.einsum("bmk,bmd->bkd", key, written),
            state.norm + jnp.einsum("bm,bmk->bk", gamma, key),
        )


# Tokens of one triangular system: all of a segment, where it has no more. On a CPU the rule and its
# gradient take three quarters of the time with 64 tokens at once that they take with 32, with 96 as
# long as with three times 32; an accelerator waits for each of many small programs.
CHUNK = 128
BLOCK = 8  # a power of two; the greatest entry of a power of a block of ones is 35


class Delta(Layerwise):
    """A matrix a layer that every token of the text reads and may write, under the delta rule
    (Yang et al. 2024): there are no memory tokens.

    A token's key, value, query and gate come from the layer's attention input. The gate lets the
    value replace what the matrix held under that key; keys and queries have length 1. A token reads
    what was written before it, in earlier segments and in its own: attention sees one segment, the
    matrix the whole text. A closed gate leaves the matrix as it was, bit for bit, so background can
    go on for ever, where ARMT's normaliser grows with whatever is written; and no write can make
    the matrix grow beyond its values. A prompt reads and never writes.
    """

    packs = False  # the rule goes through the text in order, where the text stands

    def __init__(self, config, prompt, vocab, tasks, rngs):
        super().__init__(config, prompt, vocab, tasks, rngs)
        self.rows, self.thresholds = config.d_mem, thresholds(config)
        maps = self.associative = Associative(config, rngs)
        # A word finds what was written under the same word from the first step on; and gates start
        # almost closed, or background would have overwritten everything before they have learned.
        maps.query[...] = maps.key[...]
        maps.beta_bias[...] -= 1.5

    def _initial_state(self, batch: int):
        layers, width = self.associative.value.shape[:2]
        return Associations(jnp.zeros((layers, batch, self.rows, width)), ())

    def _own_modules(self):
        return {"associative": self.associative}

    def layer(self, weights, x, state, started, view, past=None, top=None):
        module = self._layer_module(weights)
        block, maps = module["block"], module["associative"]
        x, looked, inputs = block.look(x, view, past)
        found, matrix = associate(maps, looked, state.matrix, view, weights.get("threshold"))
        x, kept = block(x + found, view, past, top, (looked, inputs))
        return x, Associations(matrix, ()), kept

    def layer_weights(self):
        weights = super().layer_weights()
        if any(self.thresholds):
            weights["threshold"] = jnp.array(self.thresholds, jnp.float32)
        return weights

    def openings(self, memory: Memory, segment: Segment, prompt: Prompt | None, depth: int):
        """Of a segment read with `memory`: x after each of the first `depth` - 1 layers, [B, N, D],
        and what the gates of the first `depth` are given, before `gate`, f32[B, L] (`opened` says
        how far they open)."""
        x, view = self.enter(memory, segment, prompt)
        weights, states = self.layer_weights(), self._layer_state(memory)
        reached, given = [], []
        for layer in range(depth):
            own, state = jax.tree.map(lambda a, n=layer: a[n], (weights, states))
            module = self._layer_module(own)
            _, seen, _ = module["block"].look(x, view, None)
            given.append(_gate_inputs(module["associative"], seen, view)[..., 0])
            if layer < depth - 1:
                x, _, _ = self.layer(own, x, state, memory.started, view)
                reached.append(x)
        return reached, given


def thresholds(config: settings.Model) -> tuple[float, ...]:
    """`gate_threshold` of every layer."""
    given = config.gate_threshold or (0.0,)
    return given * config.layers if len(given) == 1 else given


def opened(least: tuple[float, ...], given: list[jax.Array]) -> jax.Array:
    """How far gates open that are given f32[B, L], one of each of the first layers, under
    `thresholds`: f32[layers, B, L]."""
    floor = jnp.array(least[: len(given)], jnp.float32)
    return jnp.clip(gate(jnp.stack(given), floor[:, None, None]), 0, 1)


def gates(
    maps: Associative, x: jax.Array, view: View, threshold: jax.Array | None = None
) -> jax.Array:
    """How far each token of the text opens its gate, f32[B, L, 1] of the attention input x
    [B, N, D]; 0 for padding."""
    start, stop = view.sections[-1]
    opened = gate(_gate_inputs(maps, x, view), threshold)
    return jnp.where(view.mask[:, start:stop, None], opened, 0)


def _gate_inputs(maps: Associative, x: jax.Array, view: View) -> jax.Array:
    start, stop = view.sections[-1]
    return x[:, start:stop].astype(jnp.float32) @ maps.beta[...] + maps.beta_bias[...]


def associate(
    maps: Associative,
    x: jax.Array,
    matrix: jax.Array,
    view: View,
    threshold: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What every place finds in the matrix, [B, N, D] of the attention input x, and the matrix
    f32[B, K, D] after the text, the last of the view's sections.

    The rule goes token by token, M_t = M_{t-1} + g k (v - k M_{t-1}) and o_t = q M_{t-1}. A chunk
    of tokens is written at once: each sees what those before it in the chunk write under keys like
    its own, a triangular system (Yang et al. 2024, section 3).
    """
    start, stop = view.sections[-1]
    text = x[:, start:stop]
    query = _unit(product(x, maps.query[...].astype(x.dtype)).astype(jnp.float32))
    key = _unit(product(text, maps.key[...].astype(x.dtype)).astype(jnp.float32))
    value = product(text, maps.value[...].astype(x.dtype)).astype(jnp.float32)
    before = jnp.einsum("bnk,bkd->bnd", query[:, :start], matrix)

    places = stop - start
    size = min(CHUNK, places)
    count = -(-places // size)

    def chunks(a: jax.Array) -> jax.Array:
        """[B, L, n] -> [count, B, size, n]; behind the end stand closed gates."""
        a = jnp.pad(a, ((0, 0), (0, count * size - places), (0, 0)))
        return a.reshape(len(a), count, size, a.shape[2]).swapaxes(0, 1)

    def body(matrix, chunk):
        query, key, value, opened = chunk
        news = opened * (value - jnp.einsum("bmk,bkd->bmd", key, matrix))
        alike = opened * jnp.tril(jnp.einsum("bmk,bnk->bmn", key, key), -1)
        written = _inverse(alike) @ news
        nearer = jnp.tril(jnp.einsum("bmk,bnk->bmn", query, key), -1)
        found = jnp.einsum("bmk,bkd->bmd", query, matrix)
        found += jnp.einsum("bmn,bnd->bmd", nearer, written)
        return matrix + jnp.einsum("bmk,bmd->bkd", key, written), found

    each = (query[:, start:], key, value, gates(maps, x, view, threshold))
    matrix, found = jax.lax.scan(body, matrix, jax.tree.map(chunks, each))
    found = found.swapaxes(0, 1).reshape(len(x), count * size, -1)[:, :places]
    return jnp.concatenate([before, found], axis=1).astype(x.dtype), matrix


def _inverse(lower: jax.Array) -> jax.Array:
    """(1 + lower)^-1 [B, n, n] for strictly lower triangles [B, n, n]: the inverses of all blocks
    on the diagonal at once, then of blocks twice as large, from [[a, 0], [c, d]] to
    [[a⁻¹, 0], [-d⁻¹ c a⁻¹, d⁻¹]]. A block's is (1 - L)(1 + L²)(1 + L⁴). All of it is a few batched
    products, where substitution makes six for every BLOCK tokens, one after another.

    Not LAPACK's `solve_triangular`: with several CPU devices in a process it never came back.
    """
    batch, places = len(lower), lower.shape[1]
    size = BLOCK
    while size < places:
        size *= 2
    lower = jnp.pad(lower, ((0, 0), (0, size - places), (0, size - places)))

    def diagonal(step: int) -> jax.Array:
        """Blocks [B, n / step, step, step] on the diagonal."""
        count = size // step
        tiles = lower.reshape(batch, count, step, count, step)
        return jnp.stack([tiles[:, i, :, i] for i in range(count)], axis=1)

    power = -diagonal(BLOCK)
    inverse, reach = jnp.eye(BLOCK) + power, 2
    while reach < BLOCK:
        power = power @ power
        inverse, reach = inverse + inverse @ power, 2 * reach
    step = BLOCK
    while step < size:
        first, second = inverse[:, ::2], inverse[:, 1::2]
        corner = -(second @ diagonal(2 * step)[:, :, step:, :step] @ first)
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=3)
        inverse = jnp.concatenate([above, jnp.concatenate([corner, second], axis=3)], axis=2)
        step *= 2
    return inverse[:, 0, :places, :places]


def gate(x: jax.Array, threshold: jax.Array | float | None = None) -> jax.Array:
    """A sigmoid stretched from (0, 1) to (-0.1, 1.1) and cut: 0 and 1 can be reached (Louizos et
    al. 2018), and what would open less than `threshold` stays shut: over a million tokens gates
    that open a little do the harm. Its slope is that of the sigmoid also where it is cut, or a gate
    that has closed everywhere would stay closed: in training two layers of four were lost so."""
    stretched = 1.2 * jax.nn.sigmoid(x) - 0.1
    opened = jnp.clip(stretched, 0, 1)
    if threshold is not None:
        opened = jnp.where(opened < threshold, 0, opened)
    return stretched + jax.lax.stop_gradient(opened - stretched)


def _unit(x: jax.Array) -> jax.Array:
    """Each row divided by its length; a row of zeros stays one."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + EPSILON**2)


def _recall(state: Associations, query: jax.Array) -> jax.Array:
    """(q A) / (z q + 1e-5): f32[B, n, D] of query f32[B, n, K]. Zero while nothing is stored."""
    found = jnp.einsum("bnk,bkd->bnd", query, state.matrix)
    weight = jnp.einsum("bnk,bk->bn", query, state.norm) + EPSILON
    return found / weight[..., None]
