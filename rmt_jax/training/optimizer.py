"""The optimiser, built from optax, and its learning rate over the whole curriculum."""

from collections.abc import Mapping, Sequence

import jax
import optax

from rmt_jax.config import Config, ConfigError, Optimizer, Stage
from rmt_jax.runtime.mesh import path_name
from rmt_jax.types import WeightInfo


def schedule(stages: Sequence[Stage], optimizer: Optimizer, scale: float = 1.0) -> optax.Schedule:
    """Learning rate at a global step: each stage warms up from zero and decays to zero (or stays,
    `decay='constant'`). All of it is multiplied by `scale` (`divergence` lowers it)."""
    parts, boundaries, end = [], [], 0
    for stage in stages:
        steps, peak = stage.steps, scale * stage.learning_rate
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


def check_trained(config: Config, weights: Mapping[str, WeightInfo]) -> None:
    """Raises ConfigError where `optimizer.train` leaves nothing to train."""
    if not any(config.optimizer.trains(name) for name in weights):
        raise ConfigError(
            f"optimizer.train={config.optimizer.train} leaves the backbone as it is, but"
            f" model.cell={config.model.cell} has no weights of its own and there is no learned"
            " prompt: take another cell, or optimizer.train=lora or all."
        )


def build(
    config: Config, weights: Mapping[str, WeightInfo], scale: float = 1.0
) -> optax.GradientTransformation:
    """Clipping, then AdamW on everything, or Muon on the layers' matrices with Adam on the rest.

    Weight decay acts on the layers' matrices and, under AdamW, on embeddings: not on biases, norms
    and memory-like vectors, nor on anything that Muon leaves to Adam.
    Muon: Jordan 2024; matrices of stacked layers are orthogonalised one layer at a time.

    weights: what backbone and cell say of each weight, by its name 'backbone/wte'.
    """

    def of_kind(*kinds: str):
        """A mask of the weights of these kinds."""
        return lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: weights[path_name(path)].kind in kinds, params
        )

    def matrices(params):
        """The layers' matrices, [layers, in, out]: what maps a width to a width. Not embeddings,
        whose rows are used one at a time, nor a gate, which is a single column."""

        def numbers(path, leaf):
            if weights[path_name(path)].kind != "matrix":
                return None
            return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(numbers, params)

    def of_memory(params):
        """A mask of the memory cell's weights."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).startswith("memory/"), params
        )

    o = config.optimizer
    rate = schedule(config.stages, o, scale)
    if o.name == "adamw":
        core = optax.adamw(
            rate, o.b1, o.b2, weight_decay=o.weight_decay, mask=of_kind("matrix", "embedding")
        )
    else:
        base = config.stages[0].learning_rate
        ratio = (o.adam_learning_rate or base) / base

        def adam_rate(step):
            return rate(step) * ratio

        core = optax.contrib.muon(
            rate,
            weight_decay=o.weight_decay,
            adam_b1=o.b1,
            adam_b2=o.b2,
            adam_learning_rate=adam_rate,
            muon_weight_dimension_numbers=matrices,
        )
    parts = [optax.clip_by_global_norm(o.clip)] if o.clip else []
    parts.append(core)
    if o.conv_lr_multiplier != 1.0:
        # Starts at zero and must grow beside inputs of unit variance before it binds words.
        parts.append(optax.masked(optax.scale(o.conv_lr_multiplier), of_kind("convolution")))
    if o.memory_lr_multiplier != 1.0:
        parts.append(optax.masked(optax.scale(o.memory_lr_multiplier), of_memory))
    return optax.chain(*parts)
