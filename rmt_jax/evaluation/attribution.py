"""What an answer rests on: parts of the text are left unread, and the answer is scored again.

First some segments at a time, then single ones, then sentences, then tokens: each level looks into
the parts of the level above that count. A part of no weight alone may count together with others:
of two sentences that say the same, neither does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.evaluation import answering, likelihood
from rmt_jax.evaluation.answering import BLOCK, EncodedQuestion
from rmt_jax.runtime import switches

ROWS = 8  # texts read side by side, each without another part
WAYS = ROWS - 1  # parts of a stretch of segments; the first row reads all of the text
KEPT = 4  # parts of a level that are looked into
LEAST = 0.1  # nats; and of the largest effect of a level the share
KINDS = ("segments", "segment", "sentence", "token")


class Part(NamedTuple):
    """Tokens of the context from `start` to `stop`, and the answer where they were not read."""

    start: int
    stop: int
    kind: str  # one of KINDS
    logprob: float  # nats


class Attribution(NamedTuple):
    logprob: float  # nats, of the answer after the whole text
    parts: list[Part]


@switches.neutral()
def attribute(
    model: Any,
    asked: EncodedQuestion,
    answer: np.ndarray,
    room: int,
    on_parts: Callable[[int], None] | None = None,
) -> Attribution:
    """How much each part of a text adds to the log-probability of an answer, i32[t] with t at most
    `room`, by reading the text without it. For S segments about 5 · S · log7(S) are read, and more
    where several parts count. `on_parts` is called with the number of parts looked at so far."""
    reader = _Reader(model, asked, answer, room)
    found: list[Part] = []

    def look(spans: Sequence[tuple[int, int]], kinds: Sequence[str]) -> list[int]:
        """Scores these parts; which of them count, by their places in `spans`."""
        logprobs = reader.without(spans)
        whole = reader.whole
        for (start, stop), kind, logprob in zip(spans, kinds, logprobs, strict=True):
            found.append(Part(start, stop, kind, float(logprob)))
        if on_parts is not None:
            on_parts(len(found))
        effects = whole - np.asarray(logprobs)
        least = max(LEAST, LEAST * float(effects.max()))
        return [int(k) for k in np.argsort(-effects)[:KEPT] if effects[k] >= least]

    def into_segments(first: int, last: int) -> None:
        cuts = np.unique(np.linspace(first, last, min(WAYS, last - first) + 1).astype(int))
        groups = [(int(a), int(b)) for a, b in zip(cuts, cuts[1:], strict=False)]
        groups = [(a, b) for a, b in groups if reader.edges[b] > reader.edges[a]]
        if not groups:  # no text
            reader.without([(0, 0)])
            return
        spans = [(int(reader.edges[a]), int(reader.edges[b])) for a, b in groups]
        for k in look(spans, [KINDS[b - a == 1] for a, b in groups]):
            a, b = groups[k]
            if b - a > 1:
                into_segments(a, b)
            else:
                into_sentences(*spans[k])

    def into_sentences(start: int, stop: int) -> None:
        ends = np.flatnonzero(model.tokenizer.stops[asked.context[start:stop]]) + 1 + start
        cuts = np.unique(np.concatenate([[start], ends, [stop]]))
        spans = [(int(a), int(b)) for a, b in zip(cuts, cuts[1:], strict=False)]
        for k in look(spans, [KINDS[2]] * len(spans)):
            tokens = [(n, n + 1) for n in range(*spans[k])]
            look(tokens, [KINDS[3]] * len(tokens))

    into_segments(0, len(reader.edges) - 1)
    return Attribution(reader.whole, found)


class _Reader:
    """Scores an answer after its text, of which spans are masked out."""

    def __init__(self, model: Any, asked: EncodedQuestion, answer: np.ndarray, room: int):
        self.model, self.asked = model, asked
        self.layout = answering.segment_layouts(model, [asked], [room])[0]
        self.edges = self.layout.bounds
        self.prompt = answering.prompts(model, [asked])
        self.prompts = answering.prompts(model, [asked] * ROWS)
        self.prefixes = {0: model.initial_memory(1)}
        tokens, mask = answering.last_segments(model, [asked], [self.layout])
        stop = int(mask.sum())
        self.places = slice(stop, stop + len(answer))
        tokens[0, self.places], mask[0, self.places] = answer, True
        self.last = tokens, mask
        self.whole = 0.0  # nats of the answer, once a part was left out

    def without(self, spans: Sequence[tuple[int, int]]) -> list[float]:
        """Nats of the answer without each of these spans of the context, f[len(spans)]."""
        found: list[float] = []
        for start in range(0, len(spans), WAYS):
            group = list(spans[start : start + WAYS])
            rows = [(0, 0)] * (ROWS - len(group)) + group
            scores = self._score(rows, min(a for a, _ in group)).tolist()
            self.whole = scores[0]
            found += scores[-len(group) :]
        return found

    def _score(self, spans: list[tuple[int, int]], earliest: int) -> np.ndarray:
        model, inner = self.model, self.layout.segments
        first = min(int(np.searchsorted(self.edges, earliest, "right")) - 1, inner)
        memory = answering.memory_rows(model, self._prefix(first), [0] * ROWS)
        for block in range(first, inner, BLOCK):
            tokens, mask = self._segments(block, min(block + BLOCK, inner))
            masks = np.repeat(mask[None], ROWS, axis=0)
            for row, span in zip(masks, spans, strict=True):
                self._hide(row, span, block)
            memory = model.read(memory, np.repeat(tokens[None], ROWS, 0), masks, self.prompts)
        tokens, mask = (np.repeat(x[:, None], ROWS, axis=0) for x in self.last)
        for row, (a, b) in zip(mask, spans, strict=True):
            begin = int(self.edges[inner])
            row[0, max(a - begin, 0) : max(b - begin, 0)] = False
        begin, read = likelihood.programs(model)
        reading = begin(model.params, memory)
        scores = read(model.params, reading, tokens, mask, self.prompts)[0]
        return np.asarray(scores.logprob)[:, 0, self.places].sum(axis=1, dtype=np.float64)

    def _segments(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (last - first, self.model.segment_tokens)
        tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        answering.fill_segments(self.asked.context, self.layout, first, tokens, mask)
        return tokens, mask

    def _hide(self, mask: np.ndarray, span: tuple[int, int], first: int) -> None:
        for k in range(len(mask)):
            begin, end = int(self.edges[first + k]), int(self.edges[first + k + 1])
            mask[k, max(span[0] - begin, 0) : max(min(span[1], end) - begin, 0)] = False

    def _prefix(self, segments: int) -> Any:
        """The memory, B = 1, after so many segments of the text."""
        if segments not in self.prefixes:
            before = max(k for k in self.prefixes if k < segments)
            memory = self.prefixes[before]
            for block in range(before, segments, BLOCK):
                tokens, mask = self._segments(block, min(block + BLOCK, segments))
                memory = self.model.read(memory, tokens[None], mask[None], self.prompt)
            self.prefixes[segments] = memory
        return self.prefixes[segments]
