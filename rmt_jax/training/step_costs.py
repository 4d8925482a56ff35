"""What a whole train step, or reading, costs on a mesh of devices.

To `models.costs` it adds the optimiser, the logits and the layout of weights.
"""

import dataclasses
import math
from typing import Any

import jax

from rmt_jax.config import Config
from rmt_jax.models import costs, language
from rmt_jax.models.cells import CELLS
from rmt_jax.models.costs import Shape
from rmt_jax.runtime import mesh as meshes
from rmt_jax.training import optimizer
from rmt_jax.training.step import divide

ADAMW = 16.0  # FLOPs a weight: two moments, their corrections, root, decay, clip
NEWTON = 5  # Muon's iterations (optax's default)


# What a TPU's compiler holds: least squares over 16 programs, within 14 % of each
# (docs/howto/tpu.md). Copies of the gradients add up.
TPU_HOLDS = {
    "kept": 1.6,  # times what the backward pass keeps of a segment
    "gradients": 2.9,  # copies in any program
    "layerwise": 0.8,  # for a memory with a state per layer
    "all answered": 0.5,  # where all segments are asked
    "microbatches": 1.1,  # for more than one microbatch
}


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes on each device while a program runs at its fullest."""

    weights: int  # float32, to the byte
    moments: int = 0  # of the optimiser, to the byte
    gradients: int = 0  # and the updates made of them
    cast: int = 0  # the weights in the compute dtype, or those that are gathered at a time
    activations: int = 0  # what the backward pass needs of the layers, or one layer's, reading
    carried: int = 0  # the recurrence's memory, one per segment that is differentiated
    logits: int = 0  # of the answers and of a chunk of a language, their softmax and gradient

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def step_flops(config: Config, shape: Shape, vocab: int) -> float:
    """FLOPs that a train step executes on all devices together, optimiser included."""
    read, trained = costs.passes(config, shape)
    times = costs.runs(config, shape)
    wanted = shape.questions * shape.tokens
    asking = costs.segment_flops(config, wanted=wanted)
    silent = read + times * (trained - shape.answered)
    segments = silent * costs.segment_flops(config) + times * shape.answered * asking
    asked = shape.batch * shape.answered * shape.questions * shape.tokens
    segments -= (trained - shape.answered) * costs.frozen_flops(config)
    segments -= shape.answered * costs.frozen_flops(config, wanted=wanted)
    head = 3 if config.optimizer.trains("backbone/") else 2
    # In chunks they are made twice, and a gradient for what they were made of and for the table.
    at_once = language.answer_logits(vocab, config.model.width)
    chunked = asked // config.optimizer.accumulate * vocab > at_once
    logits = (head + chunked) * 2.0 * asked * vocab * config.model.width
    places = costs.language_logits(config, shape)
    logits += (head + 1) * 2.0 * places * vocab * config.model.width
    return shape.batch * segments + logits + update_flops(config, vocab)


def update_flops(config: Config, vocab: int) -> float:
    """FLOPs of the optimiser, once a step."""
    infos, flops = costs.outline(config, vocab).weights, 0.0
    for name, shape in costs.weight_shapes(config, vocab).items():
        if not config.optimizer.trains(name):
            continue
        flops += ADAMW * math.prod(shape)
        if config.optimizer.name == "muon" and infos[name].kind == "matrix":
            layers, small, large = shape[0], min(shape[1:]), max(shape[1:])
            # Orthogonalising, an iteration: X·Xᵀ, its square, and a polynomial of it times X.
            flops += layers * NEWTON * (4.0 * small**2 * large + 2.0 * small**3)
    return flops


def step_bytes(config: Config, shape: Shape, vocab: int) -> float:
    """Bytes that a train step moves on all devices together (one copy of the weights)."""
    read, trained = costs.passes(config, shape)
    times = costs.runs(config, shape)
    weights = costs.count_trained(config, vocab)
    asked = shape.batch * shape.answered * shape.questions * shape.tokens
    # Weights, gradient and two moments in float32 are read; weights and moments written.
    update = 28.0 * weights + config.optimizer.accumulate * 8.0 * weights
    logits = 3 * 2 * 4.0 * asked * vocab
    logits += 3 * 2 * 4.0 * costs.language_logits(config, shape) * vocab
    parts = config.optimizer.accumulate
    segments = parts * costs.segment_bytes(config, shape.batch // parts)
    return (read + times * trained) * segments + update + logits


def step_memory(
    config: Config, shape: Shape, vocab: int, sizes: tuple[int, int, int], tpu: bool = False
) -> Held:
    """What a train step holds on each device of a mesh of `sizes` (data, fsdp, tensor), a TPU's
    chips or others.

    An upper bound on GPUs where cuDNN's attention runs, which keeps no scores, and without remat on
    CPUs, which keep what products with weights made (`models.recurrence`).
    """
    m = config.model
    weights, trained_weights, moments, widest = state_bytes(config, vocab, sizes, tpu)
    rows = -(-shape.batch // (sizes[0] * sizes[1] * config.optimizer.accumulate))
    layer, carry = costs.layer_memory(config, rows, sizes[2], tpu)
    by_layer = sizes[1] > 1 and m.scan_layers
    trained = costs.passes(config, shape)[1]
    activations = layer * (m.layers * (1 if m.remat else trained) + 1)
    # Summed over segments and over layers, in loops; over microbatches once more.
    sums, once_more = 2.0, 1.0
    if tpu:
        activations *= TPU_HOLDS["kept"]
        sums = TPU_HOLDS["gradients"] + TPU_HOLDS["layerwise"] * CELLS[m.cell].layerwise
        sums += TPU_HOLDS["all answered"] * (trained == shape.answered)
        once_more = TPU_HOLDS["microbatches"]
    sums += once_more * (config.optimizer.accumulate > 1)
    if m.schedule == "diagonal" and m.remat:  # the inputs of all layers, for each diagonal
        carry += m.layers * rows * costs.places(config) * m.width * costs.item_bytes(config)
    asked = rows * shape.answered * shape.questions * shape.tokens
    at_once = min(asked * vocab, max(language.answer_logits(vocab, m.width), rows * vocab))
    told = costs.language_logits(config, shape._replace(batch=rows, segments=1)) * vocab
    told = min(told, max(language.LOGITS, rows * vocab))
    return Held(
        weights=weights,
        moments=moments,
        gradients=int(trained_weights * sums),
        cast=_gathered(config, vocab, sizes[2], tpu) if by_layer else _cast_bytes(config, widest),
        activations=int(activations),
        carried=int(carry * trained),
        # A TPU keeps softmax and gradient in the chip's own memory.
        logits=(1 if tpu else 3) * 4 * (at_once + told),
    )


def reading_memory(config: Config, batch: int, vocab: int, tpu: bool = False) -> Held:
    """What reading `batch` texts side by side holds on one device, whatever their length."""
    weights, _, _, widest = state_bytes(config, vocab, (1, 1, 1), tpu)
    layer, carry = costs.layer_memory(config, batch, 1, tpu)
    return Held(
        weights=weights,
        cast=_cast_bytes(config, widest),
        activations=layer,
        carried=2 * carry,
        logits=4 * batch * vocab,
    )


def state_bytes(
    config: Config, vocab: int, sizes: tuple[int, int, int], tpu: bool = False
) -> tuple[int, int, int, int]:
    """Bytes on each device of the weights, of those that are trained and of the optimiser's state,
    as the mesh lays them out (in tiles on a TPU), and the number of weights that a device has
    before it when `fsdp` has gathered them."""
    made = costs.outline(config, vocab)
    mesh = meshes.planned(sizes)
    trained, _ = divide(made.shapes, config.optimizer.trains)
    state = jax.eval_shape(optimizer.build(config, made.weights).init, trained)

    def held(tree: Any) -> int:
        place = jax.tree.leaves(meshes.place_state(tree, made.shapes, made.weights, mesh))
        pairs = zip(jax.tree.leaves(tree), place, strict=True)
        parts = ((p.shard_shape(x.shape), x.dtype.itemsize) for x, p in pairs)
        return sum(costs.tiled(*one) if tpu else math.prod(one[0]) * one[1] for one in parts)

    gathered = costs.count_weights(config, vocab) // sizes[2]
    return held(made.shapes), held(trained), held(state), gathered


def _gathered(config: Config, vocab: int, tensor: int, tpu: bool) -> int:
    """Bytes of what is whole at a time where `fsdp` splits layers that run in a loop: the weights
    of a layer and of the next one and the table of the logits, in the compute dtype, and as they
    were where no TPU's compiler casts them before it gathers."""
    infos = costs.outline(config, vocab).weights
    layers, tables = 0.0, [0]
    for name, shape in costs.weight_shapes(config, vocab).items():
        if infos[name].axes[0] == "layers":
            layers += math.prod(shape) / shape[0]
        elif infos[name].kind == "embedding":
            tables.append(math.prod(shape))
    size = costs.item_bytes(config)
    return int((2 * layers + max(tables)) / tensor) * (size if tpu or size == 4 else 4 + size)


def _cast_bytes(config: Config, weights: int) -> int:
    size = costs.item_bytes(config)
    return 0 if size == 4 else weights * size
