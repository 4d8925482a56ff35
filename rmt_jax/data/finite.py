"""Tasks with finitely many samples, each of a length of its own: which of them a length takes."""

from collections.abc import Callable

import numpy as np

from rmt_jax.data import segmentation
from rmt_jax.data.errors import DataError
from rmt_jax.data.lengths import Length
from rmt_jax.data.story import Document, StoryOptions
from rmt_jax.data.tasks import Task
from rmt_jax.data.tokenizer import Tokenizer


class FiniteTasks:
    """Samples of one split by their lengths. What is counted is kept.

    Args:
      task: the task of a name.
      answer_room: T, tokens kept for an answer and END.
    """

    def __init__(
        self,
        task: Callable[[str], Task],
        tokenizer: Tokenizer,
        split: str,
        segment_tokens: int,
        align: str,
        answer_room: int,
    ):
        self._task, self._tokenizer, self._split = task, tokenizer, split
        self._size, self._align, self._room = segment_tokens, align, answer_room
        self._chosen: dict[tuple[str, Length], np.ndarray] = {}
        self._segments: dict[str, np.ndarray] = {}
        self._known: dict[str, np.ndarray | None] = {}

    def own_lengths(self, task: str) -> bool:
        """Do samples of a task have lengths of their own, being finitely many documents?"""
        return self._task(task).documents and self._sizes(task) is not None

    def rows(self, task: str, length: Length | str) -> np.ndarray | None:
        """Numbers of a task's samples that are about as long, i64[n] (`Length`), in random order,
        always the same; None for a task without end.

        Of a finite task whose samples are stories: all whose facts fit.
        """
        length = Length.parse(length, self._size) if isinstance(length, str) else length
        sizes = self._sizes(task)
        if sizes is None:
            return None
        if (task, length) not in self._chosen:
            found = self._about_as_long(task, length, sizes)
            order = np.random.default_rng((self._task(task).seed, len(found)))
            self._chosen[task, length] = order.permutation(found)
        return self._chosen[task, length]

    def longest(self, task: str, length: Length) -> int:
        """Tokens of the longest of `rows`, questions included; 0 where there are none."""
        rows, sizes = self.rows(task, length), self._sizes(task)
        assert rows is not None and sizes is not None
        return int(sizes[rows].sum(axis=1).max(initial=0))

    def segments(self, task: str) -> np.ndarray:
        """How many segments each document of a task takes with its question, i64[n]. Raises
        DataError for a question and an answer that no segment holds."""
        if task not in self._segments:
            sizes = self._sizes(task)
            assert sizes is not None
            tails = sizes[:, 1] + 1 + self._room
            if len(tails) and tails.max() > self._size:
                raise DataError(
                    f"{task}: a question of {int(sizes[:, 1].max())} tokens and {self._room} for"
                    f" its answer do not fit in a segment of {self._size}: raise"
                    " config.model.segment_tokens, or leave out rows with long answers"
                    f" (config.data.questions.{task}.answer_tokens)."
                )
            if self._align == "sentence":
                counts = [self._count(task, row) for row in range(len(sizes))]
                self._segments[task] = np.array(counts, np.int64)
            else:
                self._segments[task] = segmentation.segment_counts(
                    sizes[:, 0], tails, self._size, self._align
                )
        return self._segments[task]

    def _sizes(self, task: str) -> np.ndarray | None:
        if task not in self._known:
            self._known[task] = self._task(task).sizes(self._split, self._tokenizer)
        return self._known[task]

    def _about_as_long(self, task: str, length: Length, sizes: np.ndarray) -> np.ndarray:
        most = length.tokens
        if not most:
            return np.arange(len(sizes))
        if not self._task(task).documents:
            tail = sizes[:, 1] + 1 + self._room if length.whole else 0
            return np.flatnonzero(sizes[:, 0] + tail <= most)
        above = most // 2 if length.above is None else length.above
        held = sizes[:, 0]
        if length.whole:  # so many segments, however full the last one is
            held = self.segments(task) * self._size
            if length.above is None and most == self._size:
                above = 0
        return np.flatnonzero((held > above) & ((held <= most) | length.cut))

    def _count(self, task: str, row: int) -> int:
        """Segments of a document that end with sentences."""
        options = StoryOptions(tokenizer=self._tokenizer)
        document = self._task(task).sample(self._split, 0, row, options)
        assert isinstance(document, Document)
        context = document.tokens
        if context is None:
            context = np.array(self._tokenizer.encode(f" {document.context}"), np.int32)
        question = len(self._tokenizer.sentence(document.question))
        bounds = segmentation.sample_bounds(
            context, question, self._room, self._size, self._align, self._tokenizer
        )
        return len(bounds) - 1
