"""Where a text is cut into segments: one rule for training, evaluation and reading in a stream.

The context is cut into segments of L tokens at most; the tail (question, ANSWER and T tokens for
the answer) is never torn: it stands whole in the last segment, after what is left of the context if
both fit, alone otherwise.
"""

import numpy as np

from rmt_jax.data.errors import DataError
from rmt_jax.data.tokenizer import Tokenizer


def segment_bounds(
    context: int, tail: int, segment: int, align: str = "left", ends: np.ndarray | None = None
) -> np.ndarray:
    """Bounds i64[S + 1] of a context of `context` tokens: segment k holds those from bounds[k] to
    bounds[k + 1], and the tail of `tail` tokens follows in the last one.

    left: every segment full but the last ones (the authors' way); right: the ragged one is the
    first, and the last is full; sentence: each ends with the last sentence (`ends`, of
    `sentence_ends`) that ends in its second half, or is full where none does.

    Raises DataError for a tail longer than a segment.
    """
    if tail > segment:
        raise DataError(
            f"Question and answer take {tail} tokens, but a segment has {segment}: "
            "raise config.model.segment_tokens or ask a shorter question."
        )
    if align == "right":
        last = min(context, segment - tail)
        inner = np.arange((context - last) % segment, context - last + 1, segment)
        return np.append(inner if inner[0] == 0 else np.append(0, inner), context)
    inner = settled_bounds(context, segment, ends if align == "sentence" else None)
    if context - inner[-1] + tail > segment and context > inner[-1]:
        inner = np.append(inner, context)
    return np.append(inner, context)


def segment_counts(
    contexts: np.ndarray, tails: np.ndarray, segment: int, align: str = "left"
) -> np.ndarray:
    """How many segments `segment_bounds` makes of contexts and tails of these numbers of tokens,
    i64[n]; for `align` left and right, which do not look at sentences."""
    if align == "right":
        last = np.minimum(contexts, segment - tails)
        return -(-(contexts - last) // segment) + 1
    rest = contexts % segment
    return contexts // segment + 1 + ((rest > 0) & (rest + tails > segment))


def sample_bounds(
    context: np.ndarray,
    question: int,
    answer_room: int,
    segment: int,
    align: str,
    tokenizer: Tokenizer,
) -> np.ndarray:
    """`segment_bounds` of a context and of its question of `question` tokens, with `answer_room`
    tokens kept for the answer and END."""
    ends = sentence_ends(context, tokenizer, align)
    return segment_bounds(len(context), question + 1 + answer_room, segment, align, ends)


def settled_bounds(context: int, segment: int, ends: np.ndarray | None = None) -> np.ndarray:
    """Bounds i64[n + 1], from 0, of the segments that stay as they are whatever text follows."""
    if ends is None:
        return np.arange(0, context + 1, segment)
    bounds = [0]
    while context - bounds[-1] > segment:
        full = bounds[-1] + segment
        before = int(np.searchsorted(ends, full, "right")) - 1
        found = before >= 0 and ends[before] > full - segment // 2
        bounds.append(int(ends[before]) if found else full)
    return np.array(bounds)


def passage_bounds(
    tokens: np.ndarray, segments: int, segment: int, align: str, tokenizer: Tokenizer
) -> np.ndarray:
    """Bounds i64[n + 1], from 0, of the at most `segments` segments that a passage is read in; what
    goes beyond them (where they end with sentences) is left out."""
    size = len(tokens)
    if align == "right" and size <= segments * segment:
        first = size % segment
        return np.append([0] if first else [], np.arange(first, size + 1, segment)).astype(int)
    bounds = settled_bounds(size, segment, sentence_ends(tokens, tokenizer, align))
    if bounds[-1] < size:
        bounds = np.append(bounds, size)
    return bounds[: segments + 1]


def sentence_ends(tokens: np.ndarray, tokenizer: Tokenizer, align: str) -> np.ndarray | None:
    """Where sentences end in tokens i[n], increasing; None where `align` does not ask for them. A
    question that its answer follows ends with the answer."""
    if align != "sentence":
        return None
    last = tokenizer.stops[tokens]
    last[:-1] &= np.asarray(tokens[1:]) != tokenizer.answer
    return np.flatnonzero(last) + 1
