"""Files that are written whole or not at all: a reader never sees half of one. And the folder where
what can be made again is kept."""

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rmt_jax.errors import RmtError

POINTER = b"version https://git-lfs.github.com/spec/"


class PointerError(RmtError):
    """A file that only says where the real one is kept; the message is a sentence for the user."""


class CacheError(RmtError):
    """The cache folder cannot be used; the message names it, and the variable that moves it."""


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
        with naming(path):
            yield hidden
        hidden.chmod(rights)  # a library may have narrowed them
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Names `path` in an OSError that names no file: of a write to a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


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


def cache_folder() -> Path:
    """RMT_JAX_CACHE, or rmt_jax under XDG_CACHE_HOME or ~/.cache. For a user without a home (a
    container with a number in place of a name) a folder among temporary files that is his alone.

    Raises CacheError where that one is another's.
    """
    if given := os.environ.get("RMT_JAX_CACHE"):
        return Path(os.path.expanduser(given))
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not base.startswith("~"):
        return Path(base) / "rmt_jax"
    folder = Path(tempfile.gettempdir()) / f"rmt_jax-{os.getuid()}"
    with cache_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise CacheError(
            f"{folder} can be written by others, so that nothing is kept there: set the environment"
            " variable RMT_JAX_CACHE to a folder of your own."
        )
    return folder


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """What goes wrong while `folder` of the cache is written (no rights, no room) becomes a
    CacheError; OSErrors that name a file elsewhere stay."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and folder not in Path(error.filename).parents:
            if not folder.is_relative_to(error.filename):
                raise
        raise CacheError(
            f"Nothing can be kept in {folder} ({error.strerror or error}): make room there, or set"
            " the environment variable RMT_JAX_CACHE to a folder that can be written."
        ) from None


def refuse_pointer(path: str | Path) -> None:
    """Raises PointerError for what a clone holds in place of a file that git-lfs has not fetched. A
    file that is not there, or cannot be read, is for others to say."""
    if not Path(path).is_file():  # not a pipe either, which can be read once only
        return
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise PointerError(
                f"{path} is a pointer of git-lfs and not the file itself: run 'git lfs pull' in its"
                " folder, or download the file."
            )
