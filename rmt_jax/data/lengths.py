"""Lengths by name: '0k' (facts only), '4k' ... '10M' (nominal, as BABILong's), '4s' (segments),
'300' (tokens of context)."""

import re
from typing import NamedTuple

from rmt_jax.data.errors import DataError

ALLOWANCE = 300  # tokens that the authors keep free for question, answer and prompt


class Length(NamedTuple):
    name: str
    tokens: int  # what must be filled; 0: facts only
    whole: bool = False  # `tokens` holds the question and the answer too ('4s')

    @classmethod
    def parse(cls, text: str, segment_tokens: int) -> "Length":
        """Raises DataError for anything else than the four kinds."""
        text = str(text)
        match = re.fullmatch(r"(\d+)([skM]?)", text)
        if not match:
            raise DataError(
                f"Unknown length {text!r}: write 0k (facts only), 1k to 10M (nominal tokens), "
                "4s (segments), or a number of context tokens."
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
