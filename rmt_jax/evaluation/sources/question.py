"""What a source of questions is, and what it hands out."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rmt_jax.errors import RmtError
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.evaluation.chat import Chat


class QuestionError(RmtError):
    """Questions that cannot be had; the message is a sentence for the user."""


@dataclass(frozen=True)
class Question:
    question: str
    target: str
    encoded: EncodedQuestion
    answer: np.ndarray  # ids of the target, END not included
    characters: int  # of context and question
    gpt2_tokens: float = 0.0  # of the same, where known
    depth: float | None = None  # of the last supporting fact: 0 start, 1 end
    facts: tuple[tuple[int, int], ...] = ()  # places in the context
    supporting: tuple[int, ...] = ()  # which of `facts` the answer rests on
    other_targets: tuple[str, ...] = ()  # answers that are right as well
    parts: tuple[str, ...] = ()  # of an answer that is a list


class QuestionSource(Protocol):
    """Hands out questions. Everything raises QuestionError: a sentence."""

    counted: str  # whose tokens lengths are of
    chat: Chat | None  # the template that questions are asked in

    def describe(self) -> str:
        """What decides the questions: two sources that describe themselves alike ask alike."""
        ...

    def tasks(self) -> list[str]:
        """Names of the tasks that there are questions of."""
        ...

    def perturbations(self) -> list[str]:
        """Names of `data.perturb.PERTURBATIONS` that apply here."""
        ...

    def check(self, perturbation: str) -> None:
        """Raises QuestionError for a perturbation that there is not, or not here."""
        ...

    def tokens(self, length: str, task: str) -> int:
        """About how many a text has, for progress and for the size of batches."""
        ...

    def room(self, task: str, perturbation: str = "") -> int:
        """Tokens for an answer, END included."""
        ...

    def count(self, task: str, length: str, samples: int) -> int:
        """How many of `samples` questions there are; 0: the task has no text of that length."""
        ...

    def ask(self, task: str, length: str, which: range, perturbation: str = "") -> list[Question]:
        """The questions of these numbers."""
        ...


@contextlib.contextmanager
def question_errors() -> Iterator[None]:
    """What is wrong with the data becomes a QuestionError: one part of an evaluation cannot be
    had, the others can."""
    try:
        yield
    except QuestionError:
        raise
    except (RmtError, OSError) as error:
        raise QuestionError(str(error)) from error
