"""In which order the cells (segment, layer) of a text are worked through.

`sequential`: segment after segment, layer after layer (`models.recurrence`). `diagonal`: all layers
at once, each on another segment (`models.diagonal`), for cells whose layers keep their own memory.
Both give the same numbers. `auto` follows what was measured (benchmarks/diagonal.md, H200.md): on
a GPU ARMT goes through one text on the diagonal, which takes a third of the time of a train step
and half of that of reading; on a CPU nothing is gained. Else it lets several devices that have too
few texts share the layers while they read (`models.pipeline`; benchmarks/READING.md).
"""

import jax

from rmt_jax.models import diagonal, platform, recurrence
from rmt_jax.models.cells import Memory
from rmt_jax.models.recurrence import Outputs
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Batch, Prompt


def chosen(schedule: str, prefers_diagonal: bool, texts: int, platform: str) -> str:
    """`sequential` or `diagonal` for `texts` texts, of a config's schedule."""
    if schedule != "auto":
        return schedule
    gains = prefers_diagonal and texts == 1 and platform == "gpu"
    return "diagonal" if gains else "sequential"


def answers(model: RecurrentModel, batch: Batch, *, bptt: int, remat: bool) -> Outputs:
    """`recurrence.answers`. The diagonal holds no segment's memory whole, so it has neither probes
    nor drift (`validation.validate` refuses them together), nor `bptt` within language
    modelling."""
    way = _chosen(model, len(batch.tokens))
    watched = batch.probe is not None or batch.background_only is not None
    watched = watched or (batch.next_token is not None and bptt > 0)
    if way == "sequential" or (model.schedule == "auto" and watched):
        return recurrence.answers(model, batch, bptt=bptt, remat=remat)
    return diagonal.answers(model, batch, bptt=bptt, remat=remat)


def read_some(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
) -> Memory:
    """The memory after the first `count` of S segments: `recurrence.read_some`."""
    inputs = (memory, tokens, mask, prompt, count)
    way = _chosen(model, len(tokens))
    if way == "sequential":
        return recurrence.read_some(model, *inputs)
    if model.schedule == "diagonal":
        return diagonal.read_some(model, *inputs)
    # Filling the pipeline takes `layers` - 1 steps, each as long as several layers in sequence.
    return jax.lax.cond(
        count >= model.backbone.layers,
        lambda *inputs: diagonal.read_some(model, *inputs),
        lambda *inputs: recurrence.read_some(model, *inputs),
        *inputs,
    )


def pipeline_layers(model: RecurrentModel) -> int:
    """Into how many parts the layers may be divided, for devices that read one text together; 1:
    one device reads it."""
    alone = model.schedule != "auto" or _chosen(model, texts=1) == "diagonal"
    return 1 if alone or model.memory.not_diagonal else model.backbone.layers


def _chosen(model: RecurrentModel, texts: int) -> str:
    prefers = model.memory.prefers_diagonal
    return chosen(model.schedule, prefers, texts, platform.current())
