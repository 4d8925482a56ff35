"""In which order the cells (segment, layer) of a text are worked through.

`sequential`: segment after segment, layer after layer (`models.recurrence`). `diagonal`: all layers
at once, each on another segment (`models.diagonal`), for cells whose layers keep their own memory.
Both give the same numbers. `auto` follows what was measured (benchmarks/diagonal.md, H200.md): on
a GPU a train step of ARMT on one text takes half the time on the diagonal; reading gains a fifth,
which filling the pipeline for each block of segments takes back; on a CPU nothing is gained.
"""

import jax
import jax.numpy as jnp

from rmt_jax.models import diagonal, recurrence
from rmt_jax.models.cells import Memory, Plain
from rmt_jax.shapes import Batch, Prompt


def settled(schedule: str, cell: str, texts: int, platform: str) -> str:
    """`sequential` or `diagonal` for a train step on `texts` texts, of a config's schedule."""
    if schedule != "auto":
        return schedule
    return "diagonal" if (cell, texts, platform) == ("armt", 1, "gpu") else "sequential"


def answers(model: Plain, batch: Batch, *, bptt: int, remat: bool) -> tuple[jax.Array, jax.Array]:
    """Logits f32[B, R, Q, T, V] where answers stand, and the drift f32[B, R] of the memory:
    `recurrence.answers`. The diagonal holds no segment's memory whole, so it has neither probes
    nor drift (`config.validate` refuses them together)."""
    way = settled(model.schedule, model.cell, len(batch.tokens), jax.default_backend())
    watched = batch.probe is not None or batch.idle is not None
    if way == "sequential" or (model.schedule == "auto" and watched):
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
    way = diagonal if model.schedule == "diagonal" else recurrence
    return way.read_some(model, memory, tokens, mask, prompt, count)
