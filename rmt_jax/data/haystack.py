"""Facts hidden in background: facts and questions stand between its sentences, in their order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rmt_jax.data.corpus.background import Slice
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import IntermediateQuestion
from rmt_jax.data.tokenizer import Tokenizer

EMPTY = Slice(np.zeros(0, np.int32), np.zeros(0, np.int64))
NO_WINDOW = (0.0, 1.0)


class ContextQuestion(NamedTuple):
    """A question that stands in the context, with its answer."""

    answer_start: int  # place of its ANSWER token in the context
    answer: tuple[int, ...]  # END included


class EncodedQuestion(NamedTuple):
    """A question to insert after a fact: question, ANSWER, answer, END."""

    after_fact: int
    tokens: tuple[int, ...]
    answer_tokens: int  # how many of them are the answer, END included


class Haystack(NamedTuple):
    """A context with what is hidden in it."""

    context: np.ndarray  # i32[n]
    facts: tuple[tuple[int, int], ...]  # place of each fact: first token, end
    questions: tuple[ContextQuestion, ...]


def choose_questions(
    questions: Sequence[IntermediateQuestion],
    tokenizer: Tokenizer,
    rng: AddressedRng,
    *,
    room: int,
    share: float,
) -> list[EncodedQuestion]:
    """Questions that fit in `room` tokens together, each with the chance `share`."""
    encode, chosen = tokenizer.sentence, []
    for one in rng.shuffled(questions) if len(questions) > 1 else questions:
        if share < 1 and rng.uniform() >= share:
            continue
        answer = (*encode(one.answer), tokenizer.end)
        tokens = (*encode(one.question), tokenizer.answer, *answer)
        if len(tokens) <= room:
            room -= len(tokens)
            chosen.append(EncodedQuestion(one.after_fact, tokens, len(answer)))
    return sorted(chosen, key=lambda one: one.after_fact)


def hide(
    facts: Sequence[tuple[int, ...]],
    questions: Sequence[EncodedQuestion],
    rng: AddressedRng,
    take: Callable[[int], Slice],
    *,
    background_tokens: int,
    window: tuple[float, float] = NO_WINDOW,
) -> Haystack:
    """Facts and questions in `background_tokens` tokens of background, which `take` gives.

    Facts stand at gaps between sentences drawn uniformly with replacement, in the order of the
    story, within `window` (a part of the background: (0, .5) is its first half).
    """
    background, starts = EMPTY.tokens, np.zeros(1, np.int64)
    gaps = np.zeros(len(facts), np.int64)
    if background_tokens > 0:
        taken = take(background_tokens)
        background, starts = taken.tokens, np.append(taken.starts, background_tokens)
        gaps = _draw_gaps(starts, background_tokens, len(facts), window, rng)
    # Each insert stands at a gap; among those of one gap the order of the story holds.
    inserts = [
        (int(gap), i, 0, ids, 0) for i, (gap, ids) in enumerate(zip(gaps, facts, strict=True))
    ]
    for after, ids, answer in questions:
        gap = int(gaps[after])
        if background_tokens > 0 and rng.uniform() < 0.5:  # later: until the next fact it holds
            until = int(gaps[after + 1]) if after + 1 < len(gaps) else len(starts) - 1
            gap = rng.between(gap, until)
        inserts.append((gap, after, 1, ids, answer))
    inserts.sort(key=lambda one: one[:3])
    context = np.empty(len(background) + sum(len(one[3]) for one in inserts), np.int32)
    spans, asked, at, done = [], [], 0, 0
    for gap, _, kind, ids, answer in inserts:
        upto = int(starts[gap])
        if upto > done:
            context[at : at + upto - done] = background[done:upto]
            at, done = at + upto - done, upto
        context[at : at + len(ids)] = ids
        if kind == 0:
            spans.append((at, at + len(ids)))
        else:
            asked.append(ContextQuestion(at + len(ids) - answer - 1, ids[-answer:]))
        at += len(ids)
    context[at:] = background[done:]
    return Haystack(context, tuple(spans), tuple(asked))


def _draw_gaps(
    starts: np.ndarray, tokens: int, count: int, window: tuple[float, float], rng: AddressedRng
) -> np.ndarray:
    """Numbers of the gaps (0: before the first sentence) where the facts go, sorted."""
    low, high = 0, len(starts)
    if window != NO_WINDOW:
        low = int(np.searchsorted(starts, window[0] * tokens, "left"))
        high = int(np.searchsorted(starts, window[1] * tokens, "right"))
        if high <= low:  # few sentences: the gap nearest to the window's middle
            low = int(np.abs(starts - sum(window) / 2 * tokens).argmin())
            high = low + 1
    return np.sort(rng.numpy.integers(low, high, count))
