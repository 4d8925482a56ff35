"""What every source of facts hands on: a story, its question, and questions asked on the way."""

from typing import NamedTuple

from rmt_jax.errors import RmtError


class NoStory(RmtError):
    """A source has no story that is short enough; the message is a sentence for the user."""


class Ask(NamedTuple):
    """A question that may be asked right after fact number `after` (0-based), and until the next
    fact, with the answer that holds there."""

    after: int
    question: str
    answer: str


class Story(NamedTuple):
    task: str  # 'qa1' ...
    facts: tuple[str, ...]  # sentences
    question: str
    answer: str
    supporting: tuple[int, ...]  # 0-based numbers of the facts that the answer rests on
    asks: tuple[Ask, ...] = ()  # dense supervision: about what holds on the way
    number: int = 0  # which story of its source this is (splits are made by story)
