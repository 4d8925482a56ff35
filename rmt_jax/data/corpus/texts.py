"""Texts to model a language on: tokenised once, whole, and mapped from disk.

A source is a folder of .txt and .jsonl files, one such file, or `builtin`. A .txt file is one text,
a row of a .jsonl file another. All texts of a source lie in one flat array of tokens in the cache,
with where each begins, which split it belongs to by a hash, a hash of what stands in it, and where
it came from. Reading and tokenising go through a source in pieces, so that it may be larger than
memory.
"""

import array
import functools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.config import Texts
from rmt_jax.data.corpus import documents, pieces
from rmt_jax.data.corpus.cache import build, map_array, token_type
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.files import cache_folder, refuse_pointer

VERSION = 1  # of the arrays
LEAST = 2  # tokens of a text: one to read, one to predict
BLOCK = 1 << 20  # characters tokenised at a time
SHOWN = 3  # texts that a sentence names
log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where a text came from."""

    file: int  # number of the file in its source
    line: int  # in a .jsonl file, from 1; 0: the whole file


class Documents:
    """Texts of one split, or all of a source; numbered in the order of the source.

    Pickled by the name of the folder in the cache: worker processes map the same file.
    """

    def __init__(self, folder: Path, kind: str, splits: tuple[str, ...]):
        """`splits`: those whose texts, by their hash, belong here. kind: of a token."""
        self._made = (folder, kind, splits)
        self.about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.tokens = map_array(folder / "tokens", np.dtype(kind))
        starts = map_array(folder / "starts", np.dtype(np.int64))
        codes = map_array(folder / "splits", np.dtype(np.uint8))
        wanted = [documents.SPLITS.index(split) for split in splits]
        self._which = np.flatnonzero(np.isin(codes, wanted))
        self.starts = np.asarray(starts[:-1])[self._which]  # i64[n]
        self.lengths = np.diff(starts)[self._which]  # i64[n], in tokens
        self.ends = np.cumsum(self.lengths)  # i64[n], of the texts laid end to end

    def __reduce__(self):
        return Documents, self._made

    def __len__(self) -> int:
        return len(self._which)

    @property
    def total(self) -> int:
        """Tokens of all texts."""
        return int(self.ends[-1]) if len(self) else 0

    def text(self, number: int) -> np.ndarray:
        """The tokens of one text, mapped from disk: u16 or i32."""
        start = self.starts[number]
        return self.tokens[start : start + self.lengths[number]]

    def name(self, number: int) -> str:
        """book.txt, or rows.jsonl:12 for what stands in line 12."""
        return self._names([number])[0]

    def digest(self) -> str:
        """Sixteen letters for what stands in these texts, wherever they lay."""
        return sha256(np.ascontiguousarray(self.hashes()).tobytes()).hexdigest()[:16]

    def hashes(self) -> np.ndarray:
        """u64[n] of what stands in each text."""
        return map_array(self._made[0] / "hashes", np.dtype(np.uint64))[self._which]

    def window(self, rng: AddressedRng, tokens: int) -> np.ndarray:
        """`tokens` tokens from a random place of a text that is drawn by its size; a text that has
        no more whole."""
        number = int(np.searchsorted(self.ends, rng.below(self.total), "right"))
        text = self.text(number)
        first = rng.below(max(1, len(text) - tokens + 1))
        return text[first : first + tokens]

    def shared_with(self, other: "Documents") -> list[str]:
        """Names of the texts that stand in both, as they are called here."""
        return self._names(np.flatnonzero(np.isin(self.hashes(), other.hashes())))

    def _names(self, numbers: Iterable[int]) -> list[str]:
        origins = map_array(self._made[0] / "origins", np.dtype(np.int64)).reshape(-1, 2)
        found = (Origin(*origins[self._which[number]].tolist()) for number in numbers)
        return [_name(self.about["files"][one.file], one.line) for one in found]


def load(section: Texts, split: str, tokenizer: Tokenizer, name: str) -> Documents:
    """The texts of a split ('train', 'validation', 'test') of a config's `data.texts` entry; `name`
    is the entry's, for errors.

    A split with a source of its own has all texts of that; one without has a tenth of those of
    `train`, which keeps the rest. Raises DataError for a source that cannot be read, with file and
    line, and for a split without texts.
    """
    field = f"config.data.texts.{name}"
    apart = {"validation": section.validation, "test": section.test}
    own = apart.get(split, "")
    if own:
        found = read(own, tokenizer, section.field, field=f"{field}.{split}")
    else:
        kept = ("train", *(other for other, source in apart.items() if source))
        wanted = kept if split == "train" else (split,)
        found = read(section.train, tokenizer, section.field, wanted, field=f"{field}.train")
    if not len(found):
        raise DataError(
            f"The {split} split of {field} has no text: none of the {found.about['texts']:,} of"
            f" {section.train} falls into it by its hash (8 in 10 are to train on). Give more"
            f" texts, or {field}.{split} a source of its own."
        )
    return found


def tell_shared(section: Texts, split: str, tokenizer: Tokenizer, name: str) -> None:
    """Logs how many texts of a split are trained on too. (Of texts that are split by what stands in
    them none is.)"""
    found, trained = (load(section, part, tokenizer, name) for part in (split, "train"))
    shared = found.shared_with(trained)
    if shared:
        more = f" and {len(shared) - SHOWN:,} more" if len(shared) > SHOWN else ""
        log.warning(
            "config.data.texts.%s: %s of the %s texts of the %s split are trained on too: %s%s",
            name, f"{len(shared):,}", f"{len(found):,}", split, ", ".join(shared[:SHOWN]), more,
        )  # fmt: skip


def read(
    source: str,
    tokenizer: Tokenizer,
    text_field: str = "text",
    splits: tuple[str, ...] = documents.SPLITS,
    *,
    field: str,
) -> Documents:
    """Texts of a source, made on first use: those that belong to `splits` by their hash. `field`
    names what chose the source, for errors. Raises DataError."""
    files = _files(source, field)
    digest = sha256(f"{VERSION} {tokenizer.fingerprint()} {text_field}".encode())
    for file in files:
        digest.update(f"{file.name}\0{file.owner}\0".encode())
        if file.path is None:
            digest.update(file.content.encode())
        else:
            stat = file.path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    folder = cache_folder() / "texts" / digest.hexdigest()[:20]
    build(folder, lambda made: _make(made, files, text_field, tokenizer, field))
    return _open(folder, token_type(tokenizer).str, splits)


@functools.lru_cache(maxsize=16)
def _open(folder: Path, kind: str, splits: tuple[str, ...]) -> Documents:
    return Documents(folder, kind, splits)


@dataclass(frozen=True)
class _File:
    """A file of a source, or a text that is in memory already."""

    name: str
    owner: str  # what decides the split: 'split:train', an author, the file's name; '': each row
    path: Path | None = None
    content: str = ""


def _files(source: str, field: str) -> list[_File]:
    if source == "builtin":
        return [_File(name, owner, None, text) for name, owner, text in documents.builtin_blocks()]
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".txt", ".jsonl"):
            raise DataError(
                f"{field}: {path} is neither a .txt file (one text) nor a .jsonl file (a row with a"
                " text in each line)."
            )
        folder, paths = path.parent, [path]
    elif path.is_dir():
        folder, paths = path, sorted([*path.glob("*.txt"), *path.glob("*.jsonl")])
        if not paths:
            raise DataError(f"{field}: the folder {path} holds no .txt and no .jsonl file.")
    else:
        raise DataError(
            f"{field}: there is no file or folder {source!r}. Give a folder of .txt or .jsonl"
            " files, one such file, or 'builtin'."
        )
    owners = documents.owners(folder)

    def owner(path: Path) -> str:
        return owners.get(path.name, "" if path.suffix == ".jsonl" else path.name)

    return [_File(one.name, owner(one), one) for one in paths]


def _name(file: str, line: int) -> str:
    return f"{file}:{line}" if line else file


def _make(
    made: Path, files: list[_File], text_field: str, tokenizer: Tokenizer, field: str
) -> None:
    """Writes the arrays of a source into a folder."""
    with open(made / "tokens", "wb") as stream:
        writer = _Writer(stream, tokenizer, [file.name for file in files], field)
        for number, file in enumerate(files):
            if file.path is not None:
                refuse_pointer(file.path)
            if file.path is None:
                writer.add(pieces.split(file.content), Origin(number, 0), file.owner)
            elif file.path.suffix == ".txt":
                writer.add(_pieces_of(file.path), Origin(number, 0), file.owner)
            else:
                for line, text in _rows(file.path, text_field):
                    writer.add(pieces.split(text), Origin(number, line), file.owner)
        writer.finish(made)


def _pieces_of(path: Path) -> Iterator[str]:
    """A .txt file in pieces; DataError with the byte where it is no UTF-8 text."""
    with open(path, "rb") as stream:
        if b"\0" in stream.read(4096):
            raise DataError(f"{path} is a binary file, or UTF-16 (a zero byte near its start).")
    with open(path, encoding="utf-8-sig") as stream:
        yield from pieces.pieces(stream)


def _rows(path: Path, text_field: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every row of a .jsonl file; empty lines are none."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, line {number:,}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where} is not UTF-8 (byte {error.start:,} of the line): convert the file,"
                    " for example with 'iconv -f latin1 -t utf-8'."
                ) from None
            if text.strip():
                yield number, _text_of(text, where, text_field)


def _text_of(line: str, where: str, text_field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON ({error.msg} at character {error.pos + 1:,}): {_shown(line)}"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object with a field '{text_field}': {_shown(line)}")
    if text_field not in row:
        raise DataError(
            f"{where} has no field '{text_field}'; its fields are"
            f" {', '.join(map(str, row)) or 'none'}. Name the one with the text in"
            " config.data.texts.NAME.field."
        )
    text = row[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field '{text_field}' holds {_shown(json.dumps(text))}, which is no text."
        )
    return text


def _shown(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Writer:
    """Appends texts to a source's arrays; holds a block of text and a few numbers for each text."""

    def __init__(self, stream: Any, tokenizer: Tokenizer, files: list[str], field: str):
        self._stream, self._tokenizer, self._field = stream, tokenizer, field
        self._files, self._kind = files, token_type(tokenizer)
        self._pending: list[str] = []
        self._owner: list[int] = []  # the text that each pending piece belongs to
        self._characters = 0
        self._lengths = array.array("q")
        self._origins, self._checked = array.array("q"), 0
        self._hashes, self._splits = array.array("Q"), array.array("B")

    def add(self, parts: Iterator[str], origin: Origin, owner: str) -> None:
        """A text in pieces. Raises DataError for an empty one."""
        digest, seen = sha256(), False
        number = len(self._lengths)
        self._lengths.append(0)
        for part in parts:
            try:
                digest.update(part.encode())
            except UnicodeEncodeError as error:  # JSON can write one, as \ud800
                raise DataError(
                    f"{self._field}: the text of {_name(self._files[origin.file], origin.line)}"
                    f" holds half a character ({part[error.start]!a}): take it out."
                ) from None
            seen = seen or not part.isspace()
            self._pending.append(part)
            self._owner.append(number)
            self._characters += len(part)
            if self._characters >= BLOCK:
                self._flush()
        if not seen:
            raise DataError(
                f"{self._field}: the text of {_name(self._files[origin.file], origin.line)} is"
                " empty: take it out."
            )
        self._origins.extend(origin)
        self._hashes.append(int.from_bytes(digest.digest()[:8], "little"))
        split = documents.split_of(owner or digest.hexdigest())
        self._splits.append(documents.SPLITS.index(split))

    def finish(self, made: Path) -> None:
        self._flush()
        self._check(len(self._lengths))
        starts = np.concatenate([[0], np.cumsum(np.asarray(self._lengths))]).astype(np.int64)
        for name, values in (
            ("starts", starts),
            ("origins", np.asarray(self._origins)),
            ("hashes", np.asarray(self._hashes)),
            ("splits", np.asarray(self._splits)),
        ):
            (made / name).write_bytes(values.tobytes())
        about = {"texts": len(self._lengths), "tokens": int(starts[-1]), "files": self._files}
        (made / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def _flush(self) -> None:
        if not self._pending:
            return
        found = self._tokenizer.encode_many(self._pending)
        for number, ids in zip(self._owner, found, strict=True):
            self._lengths[number] += len(ids)
            self._stream.write(np.asarray(ids, self._kind).tobytes())
        self._check(self._owner[-1])
        self._pending, self._owner, self._characters = [], [], 0

    def _check(self, stop: int) -> None:
        """Are the texts before number `stop`, which are whole, long enough?"""
        for number in range(self._checked, stop):
            if self._lengths[number] < LEAST:
                origin = Origin(*self._origins[2 * number : 2 * number + 2])
                where = _name(self._files[origin.file], origin.line)
                raise DataError(
                    f"{self._field}: the text of {where} has {self._lengths[number]} token, but a"
                    f" text needs {LEAST}, one to read and one to predict: take it out."
                )
        self._checked = stop
