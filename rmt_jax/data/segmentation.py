"""Where a text is cut into segments: one rule for training, evaluation and reading in a stream.

The context is cut into segments of L tokens at most; the tail (question, ANSWER and the room T for
the answer) is never torn: it stands in the last segment whole, after what is left of the context if
both fit, alone otherwise.
"""

import numpy as np

from rmt_jax.data.tokenizer import Tokenizer


def layout(
    context: int, tail: int, segment: int, align: str = "left", stops: np.ndarray | None = None
) -> np.ndarray:
    """Bounds i64[S + 1] of a context of `context` tokens: segment k holds those from bounds[k] to
    bounds[k + 1], and the tail of `tail` tokens follows in the last one.

    left: every segment full but the last ones (the authors' way); right: the ragged one is the
    first, and the last is full; sentence: each ends with the last sentence (`stops`, of `ends`)
    that ends in its second half, or is full where none does. Raises ValueError for a tail longer
    than a segment.
    """
    if tail > segment:
        raise ValueError(
            f"Question and answer take {tail} tokens, but a segment has {segment}: "
            "raise config.model.segment_tokens or ask a shorter question."
        )
    if align == "right":
        last = min(context, segment - tail)
        inner = np.arange((context - last) % segment, context - last + 1, segment)
        return np.append(inner if inner[0] == 0 else np.append(0, inner), context)
    inner = whole(context, segment, stops if align == "sentence" else None)
    if context - inner[-1] + tail > segment and context > inner[-1]:
        inner = np.append(inner, context)
    return np.append(inner, context)


def bounds(
    context: np.ndarray, question: int, room: int, segment: int, align: str, tokenizer: Tokenizer
) -> np.ndarray:
    """`layout` of a context and of its question of `question` tokens, with `room` for an answer."""
    stops = ends(context, tokenizer, align)
    return layout(len(context), question + 1 + room, segment, align, stops)


def whole(context: int, segment: int, stops: np.ndarray | None = None) -> np.ndarray:
    """Bounds i64[n + 1], from 0, of the segments that stay as they are whatever text follows."""
    if stops is None:
        return np.arange(0, context + 1, segment)
    bounds = [0]
    while context - bounds[-1] > segment:
        full = bounds[-1] + segment
        before = int(np.searchsorted(stops, full, "right")) - 1
        found = before >= 0 and stops[before] > full - segment // 2
        bounds.append(int(stops[before]) if found else full)
    return np.array(bounds)


def ends(tokens: np.ndarray, tokenizer: Tokenizer, align: str) -> np.ndarray | None:
    """`stops` of `layout`: where sentences end in tokens i[n], increasing; None where `align` does
    not ask. A question that its answer follows ends with the answer."""
    if align != "sentence":
        return None
    last = tokenizer.stops[tokens]
    last[:-1] &= np.asarray(tokens[1:]) != tokenizer.answer
    return np.flatnonzero(last) + 1
