"""A question with its answer and the facts that the answer rests on."""

from typing import NamedTuple

NEVER = -1  # a `handled` of questions that the official files do not ask


class Question(NamedTuple):
    text: str
    answer: str
    supporting: tuple[int, ...]  # 0-based fact numbers, the official order
    handled: int | None = None  # the fact that last took or dropped the object that is asked for

    @property
    def decisive(self) -> int:
        """The fact that is a recent one wherever the official files ask this."""
        return max(self.supporting) if self.handled is None else self.handled
