"""What a task hands on: a story whose facts are hidden in background, a document as it is, or a
passage of text to model."""

from typing import NamedTuple

import numpy as np

from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.errors import RmtError


class NoStory(RmtError):
    """A source has no story that is short enough; the message is a sentence for the user."""


class IntermediateQuestion(NamedTuple):
    """A question that may be asked after fact number `after_fact` (0-based), and until the next
    fact, with the answer that holds there (dense supervision)."""

    after_fact: int
    question: str
    answer: str


class Story(NamedTuple):
    """Facts to hide in background text, and a question about them."""

    task: str  # the task's name
    facts: tuple[str, ...]  # sentences, in order
    question: str
    answer: str
    supporting: tuple[int, ...]  # 0-based numbers of the facts that the answer rests on
    intermediate_questions: tuple[IntermediateQuestion, ...] = ()
    other_answers: tuple[str, ...] = ()  # that are right as well
    description: str = ""  # the task prompt of this story alone; '': the task's
    # Description and answer of each other meaning that the same question has.
    other_meanings: tuple[tuple[str, str], ...] = ()
    # Of an answer that is a list, 'a, b, c': what the score `match_all` looks for, each by itself.
    # The answer as it stands is trained on.
    parts: tuple[str, ...] = ()
    # Sentences that hide the facts in place of the config's background, read in a cycle; () hides
    # them in nothing; None: the config's background.
    haystack: tuple[str, ...] | None = None


class Document(NamedTuple):
    """A text that is read as it is: nothing is hidden in it, nothing is added but the question."""

    task: str
    context: str
    question: str
    answers: tuple[str, ...]  # right ones; the first is trained on
    parts: tuple[str, ...] = ()  # as a story's
    # i32[n] the context by `StoryOptions.tokenizer`, where it is kept so; `context` may be '' then
    tokens: np.ndarray | None = None


class Room(NamedTuple):
    """How long a text may be, for a task that fills it to the token."""

    tokenizer: Tokenizer  # whose tokens count
    tokens: int  # of the context; or of all that is read, see `answer`
    answer: int | None = None  # tokens kept for ANSWER and the answer within `tokens`; None: 0

    def left(self, question: str) -> int:
        """Tokens of a context that this question follows."""
        if self.answer is None:
            return self.tokens
        return self.tokens - self.answer - len(self.tokenizer.sentence(question))

    def count(self, text: str) -> int:
        """Tokens of a text as it stands in a context, behind a space."""
        return len(self.tokenizer.encode(f" {text}"))


class Passage(NamedTuple):
    """Tokens of one text that follow each other: each is predicted from those before it, and
    nothing is asked. The last one is predicted and not read."""

    task: str
    tokens: np.ndarray  # i32[n + 1] or narrower, n at least 1: n to read


class StoryOptions(NamedTuple):
    """What is asked of a story. A task without facts may ignore all of it but `max_tokens`."""

    facts: tuple[int, int] | None = None  # least and most, drawn evenly; None: as the task has it
    new_names: tuple[str, ...] = ()  # kinds drawn from word lists: people, places, objects
    unknown: bool = False  # ask for a name that the story does not have; the answer is 'unknown'
    held_out_names: bool = False  # from the part of these lists that training never sees
    question_rate: float = 0.0  # chance of an intermediate question after each fact
    last_questions: int = 0  # most other questions behind the last fact
    two_persons_below: int = 6  # stories of fewer facts have two persons, so that facts connect
    final_question_only: bool = False  # intermediate questions are the final one, asked earlier
    max_facts: int = 10**6  # a story of more is not wanted
    # Of the context, so that a document can be made to fit, or to read of a passage; 0: no limit.
    max_tokens: int = 0
    room: Room | None = None  # the same to the token, for tasks that fill it; None: no limit
    tokenizer: Tokenizer | None = None  # whose tokens are counted and wanted


OFFICIAL = StoryOptions()  # as the official files are
