"""Tasks of a user's own, made of question-and-answer rows: an entry of `config.data.questions`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rmt_jax import config
from rmt_jax.data.corpus.documents import sentences
from rmt_jax.data.errors import DataError
from rmt_jax.data.rows import readers, store
from rmt_jax.data.rows.store import Rows
from rmt_jax.data.story import Document, Story, StoryOptions
from rmt_jax.data.tasks import Task
from rmt_jax.data.tokenizer import Tokenizer

SCORES = ("exact", "normalised", "f1", "contains")  # of answers in any words
LABEL_SCORES = ("label", "exact", "normalised")


class QuestionsTask(Task):
    """Rows as documents; or with `hide` as stories, whose facts are the context's sentences."""

    suite = "questions"

    def __init__(self, name: str, data: config.Data):
        super().__init__(data)
        source = self.source = data.questions[name]
        self.name, self.description, self.paraphrases = name, source.description, source.paraphrases
        self.labels, self.longer, self.documents = source.labels, source.longer, not source.hide
        self.scores = source.scores or (LABEL_SCORES if source.labels else SCORES)
        others = (q.description for other, q in data.questions.items() if other != name)
        self.wrong_descriptions = (*filter(None, others), *Task.wrong_descriptions)

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story | Document:
        """Row `index` of the split. Raises DataError for rows that cannot be read."""
        assert options.tokenizer is not None
        rows, kept = self._rows(split, options.tokenizer)
        row = int(kept[index])
        text = rows.text(row)
        if not self.source.hide:
            tokens = rows.tokens(row)
            return Document(self.name, "", text.question, text.answers, tokens=tokens)
        facts = tuple(sentences(text.context))
        first, *more = text.answers
        return Story(self.name, facts, text.question, first, (), other_answers=tuple(more))

    def sizes(self, split: str, tokenizer: Tokenizer) -> np.ndarray:
        rows, kept = self._rows(split, tokenizer)
        return np.stack([rows.context_tokens[kept], rows.question_tokens[kept]], axis=1)

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        return self.source.answer_tokens or self._store(tokenizer).answer_tokens

    def describe(self, tokenizer: Tokenizer) -> Iterable[str]:
        yield from self._store(tokenizer).notes
        if limit := self.source.answer_tokens:
            for split, rows in self._store(tokenizer).splits.items():
                long = np.flatnonzero(rows.answer_tokens > limit)
                if len(long):
                    places = [rows.text(int(i)).place for i in long[: store.SHOWN + 1]]
                    yield (
                        f"{self.name}: {len(long):,} {split} rows with an answer of more than"
                        f" {limit} tokens are left out ({store.some(places, len(long))})."
                    )

    def problem(self) -> str:
        source, field = self.source, f"config.data.questions.{self.name}"
        if not (source.train or source.validation or source.test):
            return f"{field} names no rows: set {field}.train to a file."
        try:
            for given in (source.train, source.validation, source.test):
                if path := readers.local_file(given):
                    readers.check_file(path)
        except DataError as error:
            return f"{field}: {error}"
        return ""

    def files(self) -> Iterable[Path]:
        given = (self.source.train, self.source.validation, self.source.test)
        return [path for one in given if (path := readers.local_file(one))]

    def _store(self, tokenizer: Tokenizer) -> store.Store:
        return store.load(self.name, self.source, tokenizer)

    def _rows(self, split: str, tokenizer: Tokenizer) -> tuple[Rows, np.ndarray]:
        """The rows of a split, and the numbers of those whose answers fit."""
        rows = self._store(tokenizer).splits[split]
        limit = self.source.answer_tokens
        if not limit:
            return rows, np.arange(len(rows))
        return rows, np.flatnonzero(rows.answer_tokens <= limit)
