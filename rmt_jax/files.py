"""Files that are written whole or not at all: a reader never sees half of one."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A hidden name in the folder of `path`, to write a file to. The file takes the place of `path`
    when the block ends, with the rights of any new file, and is deleted where the block raises.
    Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random as well: on a shared disk another machine may have the same process id.
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    hidden.touch()
    rights = hidden.stat().st_mode & 0o777
    try:
        yield hidden
        hidden.chmod(rights)  # a library may have narrowed them
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: str | Path, binary: bool = False) -> Iterator[IO[Any]]:
    """`path` opened for writing, as UTF-8 text or bytes; see `atomic_path`."""
    with atomic_path(path) as hidden:
        with open(hidden, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of UTF-8 text; see `atomic_path`."""
    with atomic_open(path) as file:
        file.write(text)
