"""What a step costs: FLOPs, bytes moved, bytes held; formulas of the config, and shapes by tracing.

One segment of one text, forward, is the unit (`segment_flops`, `segment_bytes`). A training step
is so many of them, by what is differentiated and what is run again. `tests/test_costs.py` holds the
FLOPs to the compiled step's cost analysis, the memory to its memory analysis, weights to the byte.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from rmt_jax.config import SIDES, Config, Model

ADAMW = 16.0  # FLOPs a weight: two moments, their corrections, root, decay, clip
NEWTON = 5  # Muon's iterations (optax's default)


class Shape(NamedTuple):
    """Sizes of a batch, by the letters of `types.Batch`."""

    batch: int  # B
    segments: int  # S
    answered: int = 1  # R
    questions: int = 1  # Q
    tokens: int = 2  # T


def places(config: Config) -> int:
    """N: prompt, text and memory tokens of one segment."""
    prompt = config.prompt.tokens if config.prompt.source != "none" else 0
    return (
        config.model.segment_tokens + prompt + SIDES[config.model.cell] * config.model.memory_tokens
    )


def memory_of(m: Model) -> str:
    """What a model keeps of a text, in words."""
    tokens = f"{m.memory_tokens} memory tokens"
    own = {
        "none": "no memory",
        "delta": f"a matrix of {m.d_mem} rows a layer",
        "armt": f"{tokens}, d_mem {m.d_mem}, nu {m.nu}",
    }
    return own.get(m.cell, tokens)


def chunk(text: int) -> int:
    """Tokens that a delta memory writes at once, of a segment of `text`."""
    from rmt_jax.models.cells.layerwise import CHUNK

    return min(CHUNK, text)


def inverse_flops(size: int) -> float:
    """FLOPs of inverting the triangle of `size` tokens (`layerwise._inverse`): powers of the blocks
    on its diagonal, then two products for each pair of blocks at every doubling."""
    from rmt_jax.models.cells.layerwise import BLOCK

    flops, step = 0.0, BLOCK
    while step < size:
        flops, step = flops + 2.0 * step**2, 2 * step
    return step * (flops + 4.0 * BLOCK**2 * ((BLOCK - 1).bit_length() - 1))


def segment_flops(config: Config, causal: bool = False, wanted: int = 0) -> float:
    """FLOPs of the products in one text's forward pass over a segment; logits and elementwise work
    are left out. `causal`: count the visible half of the scores only (what the model needs), and
    not all that an einsum computes. `wanted`: places whose hidden state is asked for; behind its
    keys and values an unrolled last layer makes these and the write memory only (`Plain.step`)."""
    m, n = config.model, places(config)
    width, memory = m.width, m.memory_tokens if SIDES[m.cell] else 0
    scores = 4.0 * width * n * (0.5 if causal else 1)  # of one query
    layer = n * (24.0 * width**2 + scores)  # qkv 6, out 2, up 8, down 8: two for each of 12·D²
    top = wanted + memory
    left_out = 0.0
    if not m.scan_layers and m.schedule != "diagonal" and top < n:
        left_out = (n - top) * (18.0 * width**2 + scores)
    if m.cell == "armt":
        rows = 2 * m.nu * m.d_mem  # K
        layer += 2.0 * n * width * m.d_mem + 2.0 * n * rows * (width + 1)  # query, recall
        layer += 2.0 * memory * width * (m.d_mem + width + 1)  # key, value, beta
        layer += 2.0 * memory * rows * (width + 1)  # what is known already
        layer += 2.0 * memory * rows * (width + 1)  # the new matrix and norm
    if m.cell == "delta":
        text, keys = m.segment_tokens, m.d_mem
        layer += 2.0 * n * width * keys * 2  # query, recall
        layer += 2.0 * text * width * (keys + width + 1)  # key, value, beta
        layer += 2.0 * text * keys * width * 2  # what is known already, the new matrix
        size = chunk(text)
        # Alike, nearer, and two products with the tokens' values; then the system itself.
        layer += 2.0 * text * size * (2 * keys + 2 * width)
        layer += -(-text // size) * inverse_flops(size)
    convolved = n - SIDES[m.cell] * memory
    return m.layers * (layer + 2.0 * m.conv_width * convolved * width) - left_out


def train_flops(config: Config, whole: bool = False) -> float:
    """Model FLOPs of a train step for each token of text: forward and twice that backward, without
    what rematerialising repeats. Embeddings and the few answer logits are left out.

    Only what the model needs: of attention the visible half, of an unrolled last layer the places
    that are looked at. `whole`: all scores and the whole last layer, as Chowdhery et al. 2022
    (appendix B), who gave model FLOPs utilisation its name, and most figures in print count.
    """
    m = config.model
    wanted = places(config) if whole else 0
    return 3 * segment_flops(config, causal=not whole, wanted=wanted) / m.segment_tokens


def passes(config: Config, shape: Shape) -> tuple[float, float]:
    """Segments that one text is (read without gradient, trained on), in units of a segment's work;
    the diagonal schedule fills and drains its pipeline with segments of padding."""
    m = config.model
    cut = max(0, shape.segments - max(m.bptt, shape.answered)) if m.bptt else 0
    filling = m.layers - 1 if m.schedule == "diagonal" else 0
    return cut + (filling if cut else 0), shape.segments - cut + filling


def runs(config: Config, shape: Shape) -> int:
    """Forward passes that training on a segment is worth: one, two for the backward pass, and with
    remat one again, if it is not a text's only one."""
    return 4 if config.model.remat and passes(config, shape)[1] > 1 else 3


def step_flops(config: Config, shape: Shape, vocab: int) -> float:
    """FLOPs that a train step executes on all devices together, optimiser included."""
    read, trained = passes(config, shape)
    times = runs(config, shape)
    asking = segment_flops(config, wanted=shape.questions * shape.tokens)
    silent = read + times * (trained - shape.answered)
    segments = shape.batch * (silent * segment_flops(config) + times * shape.answered * asking)
    asked = shape.batch * shape.answered * shape.questions * shape.tokens
    return segments + 3 * 2.0 * asked * vocab * config.model.width + update_flops(config, vocab)


def update_flops(config: Config, vocab: int) -> float:
    """FLOPs of the optimiser, once a step."""
    flops = 0.0
    for name, shape in weight_shapes(config, vocab).items():
        flops += ADAMW * math.prod(shape)
        if config.optimizer.name == "muon" and name.split("/")[-1] in MATRICES and len(shape) == 3:
            layers, small, large = shape[0], min(shape[1:]), max(shape[1:])
            # Orthogonalising, an iteration: X·Xᵀ, its square, and a polynomial of it times X.
            flops += layers * NEWTON * (4.0 * small**2 * large + 2.0 * small**3)
    return flops


MATRICES = ("kernel", "query", "key", "value")  # what `optimizer` gives to Muon


def segment_bytes(config: Config, batch: int) -> float:
    """Bytes that `batch` texts' forward pass over a segment moves between memory and chip, if what
    is elementwise is fused: weights once, each kept array written and read once."""
    m, n, size = config.model, places(config), item_bytes(config)
    kept = 16.0 * m.width * size  # two norms, qkv, attention's result, two sums, up 4, its gelu 4
    kept += m.heads * n * (4.0 + size)  # scores and softmax
    weights = 12.0 * m.width**2 * size
    layer = 2.0 * batch * n * kept + weights
    if m.cell == "armt":
        rows = 2 * m.nu * m.d_mem
        layer += (2.0 * m.width * m.d_mem + m.width**2) * size
        layer += 4.0 * batch * (2.0 * n * rows + 3.0 * rows * m.width)  # features; matrix 2 r, 1 w
    if m.cell == "delta":
        text, keys = m.segment_tokens, m.d_mem
        layer += (2.0 * m.width * keys + m.width**2) * size
        layer += 4.0 * batch * (2.0 * (n + text) * keys + 4.0 * text * m.width)  # q, k; v, o
        layer += 4.0 * batch * 3.0 * keys * m.width * -(-text // chunk(text))  # matrix 2 r, 1 w
    return m.layers * layer


def step_bytes(config: Config, shape: Shape, vocab: int) -> float:
    """Bytes that a train step moves on all devices together (one copy of the weights)."""
    read, trained = passes(config, shape)
    times = runs(config, shape)
    weights = sum(math.prod(s) for s in weight_shapes(config, vocab).values())
    asked = shape.batch * shape.answered * shape.questions * shape.tokens
    # Weights, gradient and two moments in float32 are read; weights and moments written.
    update = 28.0 * weights + config.optimizer.accumulate * 8.0 * weights
    logits = 3 * 2 * 4.0 * asked * vocab
    parts = config.optimizer.accumulate
    segments = parts * segment_bytes(config, shape.batch // parts)
    return (read + times * trained) * segments + update + logits


def item_bytes(config: Config) -> int:
    """Bytes of a number in the compute dtype; `auto` is bfloat16, as on an accelerator."""
    return 4 if config.model.dtype == "float32" else 2


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes on each device while a program runs at its fullest."""

    weights: int  # float32, to the byte
    moments: int = 0  # of the optimiser, to the byte
    gradients: int = 0  # and the updates made of them
    cast: int = 0  # the weights in the compute dtype
    activations: int = 0  # what the backward pass needs of the layers, or one layer's, reading
    carried: int = 0  # the recurrence's memory, one a segment that is differentiated
    logits: int = 0  # of the answers, their softmax and gradient

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def step_memory(config: Config, shape: Shape, vocab: int, sizes: tuple[int, int, int]) -> Held:
    """What a train step holds on each device of a mesh of `sizes` (data, fsdp, tensor).

    An upper bound on GPUs where cuDNN's attention runs, which keeps no scores, and without remat on
    CPUs, which keep what products with weights made (`models.recurrence`).
    """
    m = config.model
    weights, moments, widest = state_bytes(config, vocab, sizes)
    rows = -(-shape.batch // (sizes[0] * sizes[1] * config.optimizer.accumulate))
    layer, carry = layer_bytes(config, rows, sizes[2])
    trained = passes(config, shape)[1]
    stored = 1 if m.remat else trained
    activations = layer * (m.layers * stored + 1)
    if m.schedule == "diagonal" and m.remat:  # the inputs of all layers, for each diagonal
        carry += m.layers * rows * places(config) * m.width * item_bytes(config)
    asked = rows * shape.answered * shape.questions * shape.tokens
    return Held(
        weights=weights,
        moments=moments,
        gradients=weights * (2 + (config.optimizer.accumulate > 1)),
        cast=0 if item_bytes(config) == 4 else widest * item_bytes(config),
        activations=int(activations),
        carried=int(carry * trained),
        logits=3 * 4 * asked * vocab,
    )


def reading_memory(config: Config, batch: int, vocab: int) -> Held:
    """What reading `batch` texts side by side holds on one device, whatever their length."""
    weights, _, widest = state_bytes(config, vocab, (1, 1, 1))
    layer, carry = layer_bytes(config, batch, 1)
    return Held(
        weights=weights,
        cast=0 if item_bytes(config) == 4 else widest * item_bytes(config),
        activations=layer,
        carried=2 * carry,
        logits=4 * batch * vocab,
    )


def weight_shapes(config: Config, vocab: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    from rmt_jax.runtime import mesh as sharding

    return {name: leaf.shape for name, leaf in sharding.named(_traced(config, vocab)[1]).items()}


@functools.lru_cache(maxsize=8)
def _traced(config: Config, vocab: int) -> tuple[Any, Any]:
    """The model's static part and the shapes of its weights; nothing is drawn."""
    from flax import nnx

    from rmt_jax import models

    tasks = len(config.data.tasks)

    def build():
        return models.build(config.model, config.prompt, vocab, tasks, nnx.Rngs(0))

    return models.split(nnx.eval_shape(build))


def state_bytes(config: Config, vocab: int, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Bytes on each device of the weights and of the optimiser's state, as `sharding` lays them
    out, and the number of weights that a device has before it when `fsdp` has gathered them."""
    import jax

    from rmt_jax.runtime import mesh as sharding
    from rmt_jax.training import optimizer

    params = _traced(config, vocab)[1]
    mesh = sharding.planned(sizes)
    state = jax.eval_shape(optimizer.build(config).init, params)

    def held(tree: Any) -> int:
        place = jax.tree.leaves(sharding.place_state(tree, params, mesh))
        pairs = zip(jax.tree.leaves(tree), place, strict=True)
        return sum(math.prod(p.shard_shape(x.shape)) * x.dtype.itemsize for x, p in pairs)

    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return held(params), held(state), count // sizes[2]


@functools.lru_cache(maxsize=64)
def layer_bytes(config: Config, rows: int, tensor: int) -> tuple[int, int]:
    """Bytes that autodiff keeps of one layer over one segment of `rows` texts, and bytes of the
    recurrence's memory: found by tracing, so that a change of the block is a change here."""
    import jax
    import jax.numpy as jnp

    from rmt_jax import models
    from rmt_jax.types import Prompt, Segment

    m, told = config.model, config.prompt.tokens
    model = dataclasses.replace(m, dtype="bfloat16" if m.dtype == "auto" else m.dtype)
    graph, params = _traced(config.replace(model=model), 8)
    own = {x.shape[1:] for x in jax.tree.leaves(params)}  # casts of the weights are counted apart

    def kept(params, tokens, mask, prompt):
        module = models.merge(graph, params)
        memory = module.initial(rows)
        x, view = module.enter(memory, Segment(tokens, mask), prompt)
        weights, state = jax.tree.map(
            lambda a: a[0], (module.layer_weights(), module._layer_state(memory))
        )

        def layer(weights, x, state):
            return module.layer(weights, x, state, memory.started, view)[:2]

        return jax.vjp(layer, weights, x, state)[1], memory.state

    def array(*shape, dtype: Any = jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    prompt = Prompt(array(rows, told), array(rows, told, dtype=jnp.bool_), array(rows))
    tokens = array(rows, m.segment_tokens)
    mask = array(rows, m.segment_tokens, dtype=jnp.bool_)
    leaves, memory = jax.eval_shape(kept, params, tokens, mask, prompt)

    def bytes_of(x: Any) -> int:
        if x.shape in own:
            return 0
        # Heads and the wide middle of the feed-forward are what `tensor` splits.
        split = tensor if x.ndim == 4 or x.shape[-1:] == (4 * m.width,) else 1
        return math.prod(x.shape) * x.dtype.itemsize // split

    found = sum(bytes_of(x) for x in jax.tree.leaves(leaves))
    return found, sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(memory))
