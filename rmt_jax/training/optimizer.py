"""The optimiser, built from optax, and its learning rate over the whole curriculum."""

import jax
import optax

from rmt_jax.config import Config, Curriculum, Optimizer, stage_value


def schedule(curriculum: Curriculum, optimizer: Optimizer, scale: float = 1.0) -> optax.Schedule:
    """Learning rate at a global step: each stage warms up from zero and decays to zero (or stays,
    `decay='constant'`). All of it is multiplied by `scale` (`rescue` lowers it)."""
    parts, boundaries, end = [], [], 0
    for stage in range(len(curriculum.segments)):
        steps = int(stage_value(curriculum.steps, stage))
        peak = scale * float(stage_value(curriculum.learning_rate, stage))
        warm = max(1, round(steps * optimizer.warmup))
        rest = max(1, steps - warm)
        if optimizer.decay == "linear":
            tail = optax.linear_schedule(peak, 0.0, rest)
        elif optimizer.decay == "cosine":
            tail = optax.cosine_decay_schedule(peak, rest)
        else:
            tail = optax.constant_schedule(peak)
        # From peak/warm, not zero: the very first step of a stage is not wasted.
        up = optax.linear_schedule(peak / warm, peak, warm)
        parts.append(optax.join_schedules([up, tail], [warm]))
        end += steps
        boundaries.append(end)
    return optax.join_schedules(parts, boundaries[:-1])


def build(config: Config, scale: float = 1.0) -> optax.GradientTransformation:
    """Clipping, then AdamW on everything, or Muon on the layers' matrices with Adam on the rest.

    Weight decay acts on the layers' matrices and, under AdamW, on embeddings: not on biases, norms
    and memory-like vectors, nor on anything that Muon leaves to Adam.
    Muon: Jordan 2024; matrices of stacked layers are orthogonalised one layer at a time.
    """
    o = config.optimizer
    rate = schedule(config.curriculum, o, scale)
    if o.name == "adamw":
        core = optax.adamw(rate, o.b1, o.b2, weight_decay=o.weight_decay, mask=_decayed)
    else:
        base = float(config.curriculum.learning_rate[0])
        ratio = (o.adam_learning_rate or base) / base

        def adam_rate(step):
            return rate(step) * ratio

        core = optax.contrib.muon(
            rate,
            weight_decay=o.weight_decay,
            adam_b1=o.b1,
            adam_b2=o.b2,
            adam_learning_rate=adam_rate,
            muon_weight_dimension_numbers=_matrices,
        )
    parts = [optax.clip_by_global_norm(o.clip)] if o.clip else []
    parts.append(core)
    if o.conv_rate != 1.0:
        # Starts at zero and must grow beside inputs of unit variance before it binds words.
        parts.append(optax.masked(optax.scale(o.conv_rate), _convolutions))
    return optax.chain(*parts)


def _is_matrix(path: tuple, leaf: jax.Array) -> bool:
    """The layers' matrices, [layers, in, out]: what maps a width to a width. Not embeddings,
    whose rows are used one at a time, nor the gate of the associative memory, a single column."""
    return path[-1].key in ("kernel", "query", "key", "value") and leaf.ndim == 3


def _matrices(params):
    def numbers(path, leaf):
        if not _is_matrix(path, leaf):
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


def _convolutions(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "conv", params)


def _decayed(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _is_matrix(path, leaf) or path[-1].key in ("wte", "wpe", "head"),
        params,
    )
