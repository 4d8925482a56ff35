"""Backbones, memory cells, the recurrence over segments, and weights.

`build` makes a model, `split` takes it apart into a static part and a plain tree of arrays, `merge`
puts it together again (inside `jax.jit`). `outline` is a model without weights: what plans,
shardings and files are made from.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError
from rmt_jax.models import schedule
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS, Memory, MemoryCell, check_diagonal
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import WeightInfo

__all__ = [
    "BACKBONES", "CELLS", "Memory", "MemoryCell", "Outline", "RecurrentModel", "build", "check",
    "merge", "outline", "split",
]  # fmt: skip


class Outline(NamedTuple):
    """A model without its weights."""

    static: nnx.GraphDef
    shapes: dict[str, Any]  # nested dicts of `jax.ShapeDtypeStruct`
    weights: dict[str, WeightInfo]  # by name, 'backbone/wte'
    batch_axis: int  # of the arrays in `Memory.state`
    pipeline: int  # layers that devices may share among them; 1: they may not


def build(
    config: settings.Model,
    prompt: settings.Prompt,
    vocab: int,
    tasks: int,
    rngs: nnx.Rngs,
    lora: settings.Lora | None = None,
) -> RecurrentModel:
    """A freshly drawn model. `tasks`: how many (rows of the learned prompt). `lora`: its adapters.

    Raises ConfigError when the sizes don't fit together, RegistryError for unknown names.
    """
    check(config, prompt)
    return RecurrentModel(config, prompt, vocab, tasks, rngs, lora)


def outline(
    config: settings.Model,
    prompt: settings.Prompt,
    vocab: int,
    tasks: int = 1,
    lora: settings.Lora | None = None,
) -> Outline:
    """The same without drawing or allocating anything."""
    model = nnx.eval_shape(lambda: build(config, prompt, vocab, tasks, nnx.Rngs(0), lora))
    layers = schedule.pipeline_layers(model)
    return Outline(*split(model), model.weights(), model.batch_axis, layers)


def split(model: RecurrentModel) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The static part, and nested dicts of arrays; '/'.join(keys) names a weight."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: Mapping[str, Any]) -> RecurrentModel:
    """The inverse of `split`; cheap, meant for the inside of a jitted function."""
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


def check(config: settings.Model, prompt: settings.Prompt) -> None:
    """What backbone and cell ask of their settings. Raises ConfigError, RegistryError."""
    settings.check_values(settings.Config(model=config, prompt=prompt))
    backbone, cell = BACKBONES[config.backbone], CELLS[config.cell]
    settings.build_options(backbone.Options, config.backbone_options, "model.backbone_options")
    settings.build_options(cell.Options, config.cell_options, "model.cell_options")
    backbone.check(config)
    cell.check(config)
    if config.schedule == "diagonal":
        check_diagonal(config.cell)
    most = backbone.max_places(config)
    own_rows = config.position_layout == "wrap_pos" and cell.writes
    copies = cell.token_copies() - own_rows  # the write memory has rows of its own
    room = 0 if prompt.source == "none" else prompt.tokens
    kept = cell.kept_tokens(config)
    need = copies * config.memory_tokens + kept + room + config.segment_tokens
    if most is not None and need > most:
        table = ", or raise model.max_positions" if backbone.table_rows(config, 0) else ""
        memory = f"{kept:,} kept" if kept else f"{copies}·{config.memory_tokens} memory"
        raise ConfigError(
            f"{memory} + {room} prompt + {config.segment_tokens:,}"
            f" segment tokens = {need:,} positions, but the backbone has {most:,}: lower"
            f" model.segment_tokens to {max(1, config.segment_tokens - need + most):,}{table}."
        )
