"""Lengths by name: '0k' (facts only), '4k' ... '10M' (nominal, as BABILong's), '4s' (segments),
'300' (tokens of context), 'all' (documents of any length, as they are).

Of a task with finitely many documents, a length takes those that are longer than half of it, and at
most as long: 1s, 2s, 4s, 8s take every document of up to eight segments once."""

import re
from typing import NamedTuple

from rmt_jax.data.errors import DataError

ALLOWANCE = 300  # tokens that the authors keep free for question, answer and prompt


class Length(NamedTuple):
    name: str
    tokens: int  # what must be filled; 0: facts only
    whole: bool = False  # `tokens` holds the question and the answer too ('4s')
    # Documents of at most so many tokens are too short for it; None: of half as many.
    above: int | None = None
    cut: bool = False  # documents that are longer belong here too, and are cut

    @classmethod
    def parse(cls, text: str, segment_tokens: int) -> "Length":
        """Raises DataError for anything else than the five kinds."""
        text = str(text)
        if text == "all":
            return cls(text, 0)
        match = re.fullmatch(r"(\d+)([skM]?)", text)
        if not match:
            raise DataError(
                f"Unknown length {text!r}: write 0k (facts only), 1k to 10M (nominal tokens), "
                "4s (segments), a number of context tokens, or all (documents of any length)."
            )
        number, unit = int(match[1]), match[2]
        if unit == "s":
            if number < 1:
                raise DataError("A length of 0 segments holds nothing: 1s is the shortest.")
            return cls(text, number * segment_tokens, True)
        if number == 0:
            return cls(text, 0)
        if not unit:
            return cls(text, number)
        # The authors count 1,000 tokens a k (and 1M = 1,000k).
        nominal = number * {"k": 1_000, "M": 1_000_000}[unit]
        return cls(text, nominal - ALLOWANCE)
