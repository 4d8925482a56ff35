"""What the layers cost: FLOPs, bytes moved, bytes kept; formulas of backbone and cell, and tracing.

One segment of one text, forward, is the unit (`segment_flops`, `segment_bytes`). A training step
is so many of them, by what is differentiated and what is run again. `training.plan` adds the
optimiser and the devices. `tests/test_costs.py` holds the FLOPs to the compiled step's cost
analysis, the memory to its memory analysis, weights to the byte.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax import models
from rmt_jax.config import Config
from rmt_jax.models import platform, recurrent
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.types import Prompt, Segment

TILE = (8, 128)  # rows and columns of a tile


class Shape(NamedTuple):
    """Sizes of a batch, by the letters of `types.Batch`."""

    batch: int  # B
    segments: int  # S
    answered: int = 1  # R
    questions: int = 1  # Q
    tokens: int = 2  # T


def memory_places(config: Config) -> int:
    """Places of memory tokens in one segment."""
    return CELLS[config.model.cell].token_copies() * config.model.memory_tokens


def places(config: Config) -> int:
    """N: prompt, text and memory tokens of one segment."""
    prompt = config.prompt.tokens if config.prompt.source != "none" else 0
    return config.model.segment_tokens + prompt + memory_places(config)


def segment_flops(config: Config, causal: bool = False, wanted: int = 0) -> float:
    """FLOPs of the products in one text's forward pass over a segment; logits and elementwise work
    are left out.

    causal: count the visible half of the scores only (what the model needs), and not all that an
    einsum computes. wanted: places whose hidden state is asked for; behind its keys and values an
    unrolled last layer makes these and the write memory only (`RecurrentModel.step`).
    """
    m, n = config.model, places(config)
    cells = m.layers * CELLS[m.cell].layer_flops(m, n) + 2.0 * n * adapter_weights(config)
    return _backbone_flops(config, causal, wanted) + cells


def frozen_flops(config: Config, causal: bool = False, wanted: int = 0) -> float:
    """FLOPs of one text's backward pass over a segment that are left out, since the backbone's
    matrices take no gradient (`optimizer.train`)."""
    if config.optimizer.trains("backbone/"):
        return 0.0
    m, n, memory = config.model, places(config), memory_places(config)
    layer = BACKBONES[m.backbone].layer_flops(m, n, memory, n, causal)
    products = 2.0 * n * layer_weights(config) / m.layers
    return products / layer * _backbone_flops(config, causal, wanted)


def _backbone_flops(config: Config, causal: bool, wanted: int) -> float:
    m, n, memory = config.model, places(config), memory_places(config)
    backbone, cell = BACKBONES[m.backbone], CELLS[m.cell]
    layer = backbone.layer_flops(m, n, memory, n, causal)
    top = wanted + (m.memory_tokens if cell.writes or cell.reads else 0)
    if m.scan_layers or m.schedule == "diagonal" or top >= n:
        return m.layers * layer
    return (m.layers - 1) * layer + backbone.layer_flops(m, n, memory, top, causal)


def adapter_weights(config: Config) -> int:
    """Numbers in all adapters (`models.lora`)."""
    if config.adapters is None:
        return 0
    shapes = weight_shapes(config, 8).items()
    return sum(math.prod(shape) for name, shape in shapes if name.startswith("adapters/"))


def train_flops(config: Config, whole: bool = False) -> float:
    """Model FLOPs of a train step for each token of text: forward and twice that backward, less
    the gradients of frozen weights, without what rematerialising repeats. Embeddings and logits are
    left out: those of answers are few, those of language modelling are not, and what is said of it
    is the least that it takes.

    Only what the model needs: of attention the visible half, of an unrolled last layer the places
    that are looked at. `whole`: all scores and the whole last layer, as Chowdhery et al. 2022
    (appendix B), who gave model FLOPs utilisation its name, and most figures in print count.
    """
    wanted = places(config) if whole else 0
    segment = 3 * segment_flops(config, not whole, wanted)
    return (segment - frozen_flops(config, not whole, wanted)) / config.model.segment_tokens


def language_logits(config: Config, shape: Shape) -> int:
    """Places of a batch at which language modelling makes logits: all, where a task is of
    `data.texts`; of every text, since texts of all tasks share a program."""
    if not set(config.data.tasks) & set(config.data.texts):
        return 0
    return shape.batch * shape.segments * config.model.segment_tokens


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


def segment_bytes(config: Config, batch: int) -> float:
    """Bytes that `batch` texts' forward pass over a segment moves between memory and chip, if what
    is elementwise is fused: weights once, each kept array written and read once."""
    m, n, size = config.model, places(config), item_bytes(config)
    layer = BACKBONES[m.backbone].layer_bytes(m, batch, n, size)
    return m.layers * (layer + CELLS[m.cell].layer_bytes(m, batch, n, size))


def item_bytes(config: Config) -> int:
    """Bytes of a number in the compute dtype; `auto` is bfloat16, as on an accelerator."""
    return 4 if config.model.dtype == "float32" else 2


@functools.lru_cache(maxsize=8)
def outline(config: Config, vocab: int) -> models.Outline:
    """The model of a config without its weights."""
    tasks = len(config.data.tasks)
    return models.outline(config.model, config.prompt, vocab, tasks, config.adapters)


def weight_shapes(config: Config, vocab: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    leaves = jax.tree_util.tree_leaves_with_path(outline(config, vocab).shapes)
    return {"/".join(part.key for part in path): leaf.shape for path, leaf in leaves}


def count_weights(config: Config, vocab: int) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(config, vocab).values())


def count_trained(config: Config, vocab: int) -> int:
    """Of these, how many change."""
    shapes = weight_shapes(config, vocab).items()
    return sum(math.prod(shape) for name, shape in shapes if config.optimizer.trains(name))


def layer_weights(config: Config) -> int:
    """Weights of all layers' matrices, which every copy of the model reads in each segment."""
    made = outline(config, 8)
    shapes = weight_shapes(config, 8)
    matrices = (n for n, info in made.weights.items() if info.kind == "matrix")
    return sum(math.prod(shapes[n]) for n in matrices if n.startswith("backbone/"))


def tiled(shape: tuple[int, ...], size: int) -> int:
    """Bytes of an array on a TPU, of numbers of `size` bytes: one of its last two axes fills lanes,
    128 at a time, the other one up to 8 rows, as it takes less."""
    *rest, first, second = (1, 1, *shape)

    def padded(rows: int, lanes: int) -> int:
        step = min(TILE[0], 1 << max(0, rows - 1).bit_length())
        return -(-rows // step) * step * -(-lanes // TILE[1]) * TILE[1]

    return math.prod(rest) * min(padded(first, second), padded(second, first)) * size


@functools.lru_cache(maxsize=64)
def layer_memory(config: Config, rows: int, tensor: int, tpu: bool = False) -> tuple[int, int]:
    """Bytes that autodiff keeps of one layer over one segment of `rows` texts, and bytes of the
    recurrence's memory: found by tracing, so that a change of the block is a change here.

    tpu: what is kept there (`recurrent.keeping`), in its tiles.
    """
    m, room = config.model, config.prompt.tokens
    model = dataclasses.replace(m, dtype="bfloat16" if m.dtype == "auto" else m.dtype)
    made = outline(config.replace(model=model), 8)
    own = {x.shape[1:] for x in jax.tree.leaves(made.shapes)}  # casts of weights are counted apart

    def kept(params, tokens, mask, prompt):
        module = models.merge(made.static, params)
        memory = module.initial(rows)
        x, context = module.enter(memory, Segment(tokens, mask), prompt)
        params, state = jax.tree.map(
            lambda a: a[0], (module.stacked_params(), module.layer_state(memory))
        )

        frozen = {} if config.optimizer.trains("backbone/") else {"block": params.pop("block")}

        def layer(params, x, state):
            return module.run_layer(frozen | params, x, state, memory.started, context)[:2]

        return jax.vjp(recurrent.keeping(layer), params, x, state)[1], memory.state

    def array(*shape, dtype: Any = jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    prompt = Prompt(array(rows, room), array(rows, room, dtype=jnp.bool_), array(rows))
    tokens = array(rows, m.segment_tokens)
    mask = array(rows, m.segment_tokens, dtype=jnp.bool_)
    with platform.compiling_for("tpu") if tpu else contextlib.nullcontext():
        leaves, memory = jax.eval_shape(kept, made.shapes, tokens, mask, prompt)
    wide = BACKBONES[m.backbone].wide_axes(m)

    def bytes_of(x: Any) -> int:
        if x.shape in own:
            return 0
        # Heads and the wide middle of the feed-forward are what `tensor` splits.
        split = tensor if x.ndim == 4 or set(x.shape[-1:]) & wide else 1
        return held(x) // split

    def held(x: Any) -> int:
        size = x.dtype.itemsize
        return tiled(x.shape, size) if tpu else math.prod(x.shape) * size

    found = sum(bytes_of(x) for x in jax.tree.leaves(leaves))
    return found, sum(held(x) for x in jax.tree.leaves(memory))
