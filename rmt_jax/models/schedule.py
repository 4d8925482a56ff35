"""In which order the cells (segment, layer) of a text are worked through.

`sequential`: segment after segment, layer after layer (`models.recurrence`). `diagonal`: all layers
at once, each on another segment (`models.diagonal`), for cells whose layers keep their own memory.
Both give the same numbers. `auto` is sequential wherever nobody has measured otherwise, and until
now that is everywhere: on a CPU the diagonal gains nothing (benchmarks/diagonal.md), on a GPU its
authors report 3.8 times the speed at batch 1, which we have not measured.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rmt_jax.models import diagonal, recurrence
from rmt_jax.models.cells import Memory, Plain
from rmt_jax.shapes import Batch, Prompt


def settled(schedule: str) -> str:
    """`sequential` or `diagonal` for a config's `model.schedule`."""
    return "sequential" if schedule == "auto" else schedule


def answers(model: Plain, batch: Batch, *, bptt: int, remat: bool) -> tuple[jax.Array, jax.Array]:
    """Logits f32[B, R, Q, T, V] where answers stand, and the drift f32[B, R] of the memory:
    `recurrence.answers`. The diagonal holds no segment's memory whole, so it has neither probes
    nor drift (`config.validate` refuses them together)."""
    if _way(model) is recurrence:
        return recurrence.answers(model, batch, bptt=bptt, remat=remat)
    logits = diagonal.answer_logits(model, batch, bptt=bptt, remat=remat)
    return logits, jnp.zeros(batch.at.shape[:2])


def read_some(
    model: Plain,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
) -> Memory:
    """The memory after the first `count` of S segments: `recurrence.read_some`."""
    return _way(model).read_some(model, memory, tokens, mask, prompt, count)


def _way(model: Plain) -> Any:
    return diagonal if settled(model.schedule) == "diagonal" else recurrence
