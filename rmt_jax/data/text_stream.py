"""Texts of any size as a stream of tokens, and the records of data files one at a time.

Nothing here holds a whole text twice: it is read in the pieces of `data.corpus.pieces`.
"""

import io
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


# How files that are no texts begin, what they are, and how to make a text of one.
KINDS = {
    b"\x1f\x8b": "compressed with gzip: gunzip it first, or pipe it in: zcat FILE | python -m …",
    b"BZh": "compressed with bzip2: bunzip2 it first",
    b"\xfd7zXZ": "compressed with xz: unxz it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unzstd it first",
    b"%PDF": "a PDF: take the text out first, for example with pdftotext",
    b"PK\x03\x04": "a zip, as e-books and office documents are: save it as plain text first",
    b"\xd0\xcf\x11\xe0": "an office document: save it as plain text first",
    b"\xff\xfe": "UTF-16: convert it first, with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it first, with iconv -f UTF-16 -t UTF-8",
}
HEAD = 4096  # bytes that tell


class TextError(RmtError):
    """A text that cannot be read; the message is a sentence for the user."""


def refuse_other_kinds(head: bytes, name: str | Path) -> None:
    """Raises TextError where a file with these first bytes is no text, with what to do."""
    for start, kind in KINDS.items():
        if head.startswith(start):
            raise TextError(f"{name} is {kind}.")
    if b"\0" in head:
        raise TextError(f"{name} is a binary file and no text (a zero byte near its start).")


def open_text(path: Path) -> IO[str]:
    """The file as text. Raises TextError for a missing file, a folder, no permission."""
    refuse_pointer(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise TextError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise TextError(f"{path} is a folder: name a text file in it.") from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        refuse_other_kinds(file.peek(HEAD)[:HEAD], path)  # a pipe can be read once only
    except TextError:
        file.close()
        raise
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


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
