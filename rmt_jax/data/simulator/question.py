"""A question with its answer and the facts that the answer rests on."""

from typing import NamedTuple


class Question(NamedTuple):
    text: str
    answer: str
    supporting: tuple[int, ...]  # 0-based fact numbers, the official order
