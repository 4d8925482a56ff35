"""The official bAbI text files: one item per question, with all facts before it.

A line is `ID text` or `ID question<TAB>answer<TAB>supporting ids`; ID 1 begins a story. The layouts
`en`, `en-10k` (qa1_..._train.txt) and `en-valid-10k` (qa1_train.txt, qa1_valid.txt) are known.
"""

import hashlib
import os
import re
import tarfile
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rmt_jax.data import web
from rmt_jax.data.babi import table
from rmt_jax.data.babi.table import BabiError
from rmt_jax.files import refuse_pointer

ADDRESS = "http://www.thespermwhale.com/jaseweston/babi/tasks_1-20_v1-2.tar.gz"
MIRROR = "https://s3.amazonaws.com/text-datasets/babi_tasks_1-20_v1-2.tar.gz"
BLANKS = "were tabs turned into blanks? Take the original file"
_FILES = {"train": ("_train",), "validation": ("_valid",), "test": ("_test",)}


class Item(NamedTuple):
    facts: tuple[str, ...]  # every fact of the story before the question
    question: str
    answer: str
    supporting: tuple[int, ...]  # 0-based numbers in `facts`
    story: int  # which story of the file, from 0
    line: int  # of the question, from 1


def read(path: str | Path) -> list[Item]:
    """Every question of a file, in file order. Raises `BabiError` with file and line."""
    path = Path(path)
    refuse_pointer(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BabiError(f"There is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise BabiError(f"{path} is not text in UTF-8 (byte {error.start:,}).") from None
    items: list[Item] = []
    facts: list[str] = []
    places: dict[int, int] = {}  # line ID of a fact: its number
    story, before = -1, 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue

        def wrong(what: str, number: int = number) -> BabiError:
            return BabiError(f"{path}, line {number}: {what}")

        match = re.match(r"(\d+) (.+)", line)
        if not match:
            raise wrong(f"expected 'ID text', found {line[:60]!r}")
        identity, rest = int(match[1]), match[2]
        if identity == 1:
            story, facts, places = story + 1, [], {}
        elif story < 0:
            raise wrong(f"the file starts with ID {identity}, but a story starts with ID 1")
        elif identity != before + 1:
            raise wrong(f"ID {identity} follows ID {before}")
        before = identity
        if "\t" not in rest:
            if "?" in rest:
                raise wrong(
                    f"{rest.strip()[:60]!r} is a question without a tab and answer; {BLANKS}"
                )
            places[identity] = len(facts)
            facts.append(rest.strip())
            continue
        parts = rest.split("\t")
        if len(parts) < 2 or not parts[0].strip() or not parts[1].strip():
            raise wrong("a question needs a tab and its answer")
        if re.search(r"\?\s+\S", parts[0]) or (len(parts) < 3 and re.search(r"\S\s+\d", parts[1])):
            raise wrong(f"a tab is missing in {rest.strip()[:60]!r}; {BLANKS}")
        supporting = []
        for word in (parts[2] if len(parts) > 2 else "").split():
            if not word.isdigit() or int(word) not in places:
                raise wrong(f"supporting fact {word!r} is no fact before the question")
            supporting.append(places[int(word)])
        items.append(
            Item(tuple(facts), parts[0].strip(), parts[1].strip(), tuple(supporting), story, number)
        )
    if not items:
        raise BabiError(f"{path} holds no question.")
    return items


def find(folder: str | Path, task: str, part: str) -> Path:
    """The file of a task ('qa1') and part ('train', 'validation', 'test') in a folder, whatever its
    layout. Raises `BabiError` when there is none, naming what was looked for."""
    folder = Path(folder)
    table.row(task)
    if not folder.is_dir():
        raise BabiError(
            f"There is no folder {str(folder)!r} with bAbI files. Set --config.data.babi_dir to "
            f"one, such as tasks_1-20_v1-2/en-10k. {manual_route()}"
        )
    wanted = [rf"{task}(_.*)?{ending}\.txt" for ending in _FILES[part]]
    for candidate in sorted(folder.iterdir()):
        if any(re.fullmatch(pattern, candidate.name) for pattern in wanted):
            return candidate
    seen = [p.name for p in folder.iterdir() if p.name.endswith(".txt")]
    raise BabiError(
        f"{folder} has no {part} file of {task} (such as {task}_{table.row(task).title}"
        f"{_FILES[part][0]}.txt); it holds {len(seen)} text files."
    )


def is_folder_of_files(folder: str | Path) -> bool:
    """Does this folder hold bAbI's text files?"""
    return any(re.match(r"qa\d+_.*\.txt$", path.name) for path in Path(folder).glob("qa*_*.txt"))


def has_part(folder: str | Path, part: str) -> bool:
    """Does this folder hold a file of a part ('train', 'validation', 'test') of any task?"""
    return any(Path(folder).glob(f"qa*{_FILES[part][0]}.txt"))


@lru_cache(maxsize=64)
def cached(path: Path) -> tuple[Item, ...]:
    return tuple(read(path))


def manual_route() -> str:
    return (
        f"The files are public: download {ADDRESS} on a machine with network access, unpack it, "
        "and copy the folder tasks_1-20_v1-2 here."
    )


def download(folder: str | Path, sha256: str = "", address: str = "") -> Path:
    """Fetches and unpacks the official archive into `folder`; returns its en-10k folder.

    `sha256`: the digest to insist on; when it is not given, the digest found is kept beside the
    files, so that a second machine can insist on it. Raises `BabiError` with the manual route when
    no address gives the archive whole.
    """
    folder = Path(folder)
    target = folder / "tasks_1-20_v1-2"
    if (target / "en-10k").is_dir():
        return target / "en-10k"
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for source in [address] if address else [ADDRESS, MIRROR]:
        try:
            _fetch(source, target, sha256)
            return target / "en-10k"
        except (OSError, BabiError) as error:
            problems.append(f"{source}: {error}")
    raise BabiError(f"No address gives the files ({'; '.join(problems)}). {manual_route()}")


def _fetch(source: str, target: Path, sha256: str) -> None:
    """One address's archive, unpacked as the folder `target`, with its digest in SHA256."""
    data = web.get(source)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise BabiError(f"it has SHA-256 {digest}, expected {sha256}: not unpacked")
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        archive = Path(name) / "babi.tar.gz"
        archive.write_bytes(data)
        try:
            with tarfile.open(archive, "r:gz") as tar:
                _unpack(tar, Path(name) / "out")
        # EOFError, zlib.error: of a gzip file that was cut short or is damaged.
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise BabiError(f"{len(data):,} bytes that cannot be unpacked ({error})") from None
        unpacked = Path(name) / "out" / target.name
        if not (unpacked / "en-10k").is_dir():
            raise BabiError(f"it does not hold {target.name}/en-10k")
        (unpacked / "SHA256").write_text(f"{digest}  {source}\n")
        os.rename(unpacked, target)


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Writes the archive's files below `folder`, and nothing else: `extractall` without a filter,
    which Python has from 3.11.4 on, writes anywhere."""
    for member in tar:
        path = PurePosixPath(member.name)
        if member.isdir():
            continue
        if not member.isreg() or path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"it holds {member.name!r}, which is no file of its folder")
        file, inside = folder / path, tar.extractfile(member)
        assert inside is not None  # of a regular file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(inside.read())
