"""Texts of any size as a stream of tokens, and the records of data files one at a time.

Nothing here holds a whole text twice: it is read in the pieces of `data.corpus.pieces`.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmt_jax.data.corpus.pieces import PIECE, encode, pieces
from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer

__all__ = [
    "PIECE",
    "TextError",
    "decode_pieces",
    "encode",
    "encode_pieces",
    "open_text",
    "pieces",
    "rewindable",
]


class TextError(RmtError):
    """A text that cannot be read; the message is a sentence for the user."""


def open_text(path: Path) -> IO[str]:
    """The file as text. Raises TextError for a missing file, a folder, no permission."""
    refuse_pointer(path)
    try:
        return open(path, encoding="utf-8", newline="")
    except FileNotFoundError as error:
        raise TextError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise TextError(f"{path} is a folder: name a text file in it.") from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}.") from error


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
