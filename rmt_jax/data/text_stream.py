"""Texts of any size as a stream of tokens, and the records of data files one at a time.

Nothing here holds a whole text twice. A text is read in pieces that end where its tokens do: the
pieces' tokens, joined, are those of the whole. (A script without spaces is split after a million
characters, where a word may fall into other tokens.)
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmt_jax.errors import RmtError

PIECE = 1 << 16  # characters

LONGEST = 16 * PIECE  # a piece without a gap between words ends here, within a word

# A byte-level tokenizer always starts a token at a single space between two words.
GAP = re.compile(r"(?<=\w) (?=[^\W\d_])")


class TextError(RmtError):
    """A text that cannot be read; the message is a sentence for the user."""


def open_text(path: Path) -> IO[str]:
    """The file as text. Raises TextError for a missing file, a folder, no permission."""
    try:
        return open(path, encoding="utf-8", newline="")
    except FileNotFoundError as error:
        raise TextError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise TextError(f"{path} is a folder: name a text file in it.") from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}.") from error


def pieces(stream: IO[str], size: int = PIECE) -> Iterator[str]:
    """The stream's text in pieces of about `size` characters that end between words. Raises
    TextError for bytes that are not UTF-8."""
    buffer, searched = "", size
    while True:
        try:
            more = stream.read(size)
        except UnicodeDecodeError as error:
            name = getattr(stream, "name", "the input")
            raise TextError(
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


def rewindable(stream: IO[str]) -> IO[str]:
    """The stream, or a copy on disk of one that can be read once only (a pipe)."""
    if stream.seekable():
        return stream
    copy = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")
    for piece in pieces(stream):
        copy.write(piece)
    copy.seek(0)
    return copy


def encode_pieces(tokenizer: Any, parts: Iterator[str]) -> Iterator[np.ndarray]:
    """i32[n] of each piece."""
    for part in parts:
        yield np.asarray(tokenizer.encode(part), np.int32)


def decode_pieces(tokenizer: Any, ids: np.ndarray) -> Iterator[str]:
    """The text of i32[n] in pieces (a list of a million Python integers takes 60 MB). A piece ends
    before a token that begins with a space: no letter of several bytes is split."""
    start = 0
    while start < len(ids):
        stop = min(start + PIECE, len(ids))
        while stop < len(ids) and not tokenizer.decode(ids[stop : stop + 1]).startswith(" "):
            stop += 1
        yield tokenizer.decode(ids[start:stop])
        start = stop


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """i32[n] of a whole text, encoded in pieces: the tokenizer's own bookkeeping (a hundred bytes a
    token) never covers more than one."""
    ids, start = [], 0
    while start < len(text):
        gap = GAP.search(text, start + PIECE, start + LONGEST)
        stop = gap.start() if gap else min(start + LONGEST, len(text))
        ids.append(np.asarray(tokenizer.encode(text[start:stop]), np.int32))
        start = stop
    return np.concatenate(ids) if ids else np.zeros(0, np.int32)
