"""Traces a model while it reads one text: what each segment does to its memory.

`trace` runs the model's own cell on its own weights, one segment at a time, and keeps how much each
part of the memory changes, and how much each token of the text counts for what is written.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.evaluation import answering
from rmt_jax.types import Segment


class Trace(NamedTuple):
    """One text of S segments of L tokens."""

    change: np.ndarray  # f32[S, rows]  relative change of each part of the memory
    state_row_label: str  # what a row of `change` is: 'memory token'
    # f32[S, R, L]  attention or gate of each token, in [0, 1]; R is 0 where the cell has neither
    token_values: np.ndarray
    row_label: str  # what one of the R is: 'layer'
    value_label: str  # what `token_values` are: 'write gate'
    tokens: np.ndarray  # i32[S, L]
    mask: np.ndarray  # bool[S, L]
    bounds: np.ndarray  # i64[S + 1]  segment k holds the context from bounds[k] to bounds[k + 1]


def trace(model: Any, question: answering.EncodedQuestion, room: int = 1) -> Trace:
    """Reads a context and its question as training does; `room` tokens are kept for the answer."""
    size = model.segment_tokens
    layout = answering.segment_layouts(model, [question], [room])[0]
    total = layout.segments + 1
    tokens, mask = np.zeros((total, size), np.int32), np.zeros((total, size), bool)
    answering.fill_segments(question.context, layout, 0, tokens[:-1], mask[:-1])
    last_tokens, last_mask = answering.last_segments(model, [question], [layout])
    tokens[-1], mask[-1] = last_tokens[0], last_mask[0]

    prompt = answering.prompts(model, [question])
    memory, changes, views = model.initial_memory(1), [], []
    for s in range(total):
        segment = Segment(tokens[s : s + 1], mask[s : s + 1])
        view = model.inspect_segment(memory, segment, prompt)
        changes.append(model.memory_cell.state_change(memory.state, view.memory.state))
        views.append(view)
        memory = view.memory
    return Trace(
        np.stack(changes),
        model.memory_cell.state_row_label,
        np.stack([view.values for view in views]),
        views[0].row_label,
        views[0].value_label,
        tokens,
        mask,
        layout.bounds,
    )


def read_spans(trace: Trace, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where spans of the context stand among the S * L places that were read."""

    def place(token: int) -> int:
        segment = int(np.searchsorted(trace.bounds[1:], token, "right"))
        return segment * trace.mask.shape[1] + token - int(trace.bounds[segment])

    return [(place(start), place(stop - 1) + 1) for start, stop in spans]
