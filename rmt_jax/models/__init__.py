"""Backbone, memory cells, recurrence, weights.

`build` makes a model, `split` takes it apart into a static part and a plain tree of arrays, `merge`
puts it together again (inside `jax.jit`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax import validation
from rmt_jax.models.cells.base import RMT, Memory, Plain
from rmt_jax.models.cells.layerwise import ARMT, PRMT, Delta

CELLS: dict[str, type[Plain]] = {
    "none": Plain,
    "rmt": RMT,
    "prmt": PRMT,
    "armt": ARMT,
    "delta": Delta,
}

__all__ = ["Memory", "build", "merge", "split"]


def build(
    config: settings.Model, prompt: settings.Prompt, vocab: int, tasks: int, rngs: nnx.Rngs
) -> Plain:
    """A freshly drawn model. `tasks`: how many (rows of the learned prompt).

    Raises ConfigError when the sizes don't fit together.
    """
    validation.validate(settings.Config(model=config, prompt=prompt))
    return CELLS[config.cell](config, prompt, vocab, tasks, rngs)


def split(model: Plain) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The static part, and nested dicts of arrays; '/'.join(keys) names a weight."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def merge(graph: nnx.GraphDef, params: Mapping[str, Any]) -> Plain:
    """The inverse of `split`; cheap, meant for the inside of a jitted function."""
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))
