"""What a task hands on: a story whose facts are hidden in background, a document as it is, or a
passage of text to model."""

from typing import NamedTuple

import numpy as np

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


class Document(NamedTuple):
    """A text that is read as it is: nothing is hidden in it, nothing is added but the question."""

    task: str
    context: str
    question: str
    answers: tuple[str, ...]  # right ones; the first is trained on


class Passage(NamedTuple):
    """Tokens of one text that follow each other: each is predicted from those before it, and
    nothing is asked. The last one is predicted and not read."""

    task: str
    tokens: np.ndarray  # i32[n + 1] or narrower, n at least 1: n to read


class StoryOptions(NamedTuple):
    """What is asked of a story. A task without facts may ignore all of it but `max_tokens`."""

    facts: tuple[int, int] | None = None  # least and most, drawn evenly; None: as the task has it
    new_names: tuple[str, ...] = ()  # kinds drawn from word lists: people, places, objects
    held_out_names: bool = False  # from the part of these lists that training never sees
    question_rate: float = 0.0  # chance of an intermediate question after each fact
    two_persons_below: int = 6  # stories of fewer facts have two persons, so that facts connect
    final_question_only: bool = False  # intermediate questions are the final one, asked earlier
    max_facts: int = 10**6  # a story of more is not wanted
    # Of the context, so that a document can be made to fit, or to read of a passage; 0: no limit.
    max_tokens: int = 0


OFFICIAL = StoryOptions()  # as the official files are
