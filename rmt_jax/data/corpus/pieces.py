"""A text in pieces that end where its tokens do: their tokens, joined, are those of the whole.

A script without spaces is split after a million characters, where a word may fall into other
tokens.
"""

import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from rmt_jax.data.errors import DataError

PIECE = 1 << 16  # characters

LONGEST = 16 * PIECE  # a piece without a gap between words ends here, within a word

# A byte-level tokenizer always starts a token at a single space between two words.
GAP = re.compile(r"(?<=\w) (?=[^\W\d_])")


def pieces(stream: IO[str], size: int = PIECE) -> Iterator[str]:
    """The stream's text in pieces of about `size` characters that end between words. Raises
    DataError for bytes that are not UTF-8."""
    buffer, searched = "", size
    while True:
        try:
            more = stream.read(size)
        except UnicodeDecodeError as error:
            name = getattr(stream, "name", "the input")
            raise DataError(
                f"{name} is not UTF-8 text (byte {error.object[error.start]:#x} at {error.start:,} "
                "of a block): convert it first, e.g. with iconv -f LATIN1 -t UTF-8."
            ) from error
        buffer += more
        if not more:
            break
        while len(buffer) >= 2 * size:
            gap = GAP.search(buffer, searched)
            if gap is None and len(buffer) < LONGEST:  # no gap between words yet: go on reading
                searched = len(buffer) - 1
                break
            end = gap.start() if gap else len(buffer)
            yield buffer[:end]
            buffer, searched = buffer[end:], size
    if buffer:
        yield buffer


def split(text: str) -> Iterator[str]:
    """The pieces of a whole text."""
    start = 0
    while start < len(text):
        gap = GAP.search(text, start + PIECE, start + LONGEST)
        stop = gap.start() if gap else min(start + LONGEST, len(text))
        yield text[start:stop]
        start = stop


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """i32[n] of a whole text, encoded in pieces: the tokenizer's own bookkeeping (a hundred bytes a
    token) never covers more than one."""
    ids = [np.asarray(tokenizer.encode(piece), np.int32) for piece in split(text)]
    return np.concatenate(ids) if ids else np.zeros(0, np.int32)
