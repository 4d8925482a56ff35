"""Hashes of what questions were made from."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def file_parts(paths: Iterable[Path], folder: Path | None = None) -> Iterator[bytes]:
    """The name of each file, below `folder` if one is given, and a hash of what is in it."""
    for path in paths:
        if path.is_file():
            yield (path.relative_to(folder).as_posix() if folder else path.name).encode()
            with open(path, "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def digest(parts: Iterable[Any]) -> str:
    """A hash of bytes and arrays: the same where the same was read. (By their times, a copy of the
    same books was other books, and hours of answers were asked anew.)"""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]
