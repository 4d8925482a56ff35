"""Rows of a task, read once: contexts as tokens in memory-mapped arrays, the rest as lines of JSON.

A split is five files in the cache folder: `tokens` and `starts` (of contexts, one after another),
`table` (i64[n, 4]: number of the context, tokens of the question, tokens of the longest answer,
where its line starts), `lines` (question, answers, place, and the context's text where its
sentences are hidden), and `note.json`. Files are made in a folder beside, which is renamed: a
killed run leaves nothing half made.
"""

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmt_jax.cli import progress_bar
from rmt_jax.config import Questions
from rmt_jax.data import text_stream
from rmt_jax.data.corpus.cache import build, map_array, token_type
from rmt_jax.data.corpus.documents import SPLITS
from rmt_jax.data.errors import DataError
from rmt_jax.data.rows import layouts, readers
from rmt_jax.data.rows.layouts import Row
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.files import cache_folder

VERSION = 1  # of the files
BATCH = 2_000_000  # characters of contexts that are tokenised together
REMEMBERED = 65_536  # hashes of the latest contexts: one with many questions is kept once
SHOWN = 3  # places that a note names


class Text(NamedTuple):
    """What a row says beside its context."""

    question: str
    answers: tuple[str, ...]
    place: str
    context: str  # '' where only its tokens are kept


class Rows:
    """The rows of one split; `len`, `tokens(i)`, `text(i)`. Nothing is held in memory."""

    def __init__(self, folder: Path, kind: np.dtype):
        self._tokens = map_array(folder / "tokens", kind)
        self._starts = map_array(folder / "starts", np.dtype(np.int64))
        self._table = map_array(folder / "table", np.dtype(np.int64)).reshape(-1, 4)
        self._lines = map_array(folder / "lines", np.dtype(np.uint8))

    def __len__(self) -> int:
        return len(self._table)

    def tokens(self, row: int) -> np.ndarray:
        """i32[n] of the context, a space in front."""
        number = self._table[row, 0]
        return np.asarray(self._tokens[self._starts[number] : self._starts[number + 1]], np.int32)

    def text(self, row: int) -> Text:
        start = int(self._table[row, 3])
        stop = int(self._table[row + 1, 3]) if row + 1 < len(self) else len(self._lines)
        question, answers, place, context = json.loads(self._lines[start:stop].tobytes())
        return Text(question, tuple(answers), place, context)

    @property
    def context_tokens(self) -> np.ndarray:
        """i64[n]: tokens of each row's context."""
        numbers = self._table[:, 0]
        return np.asarray(self._starts)[numbers + 1] - np.asarray(self._starts)[numbers]

    @property
    def question_tokens(self) -> np.ndarray:
        """i64[n]."""
        return np.asarray(self._table[:, 1])

    @property
    def answer_tokens(self) -> np.ndarray:
        """i64[n]: of the longest right answer, END not included."""
        return np.asarray(self._table[:, 2])


class Store(NamedTuple):
    """A task's rows by split, and what there is to say about them, in sentences."""

    splits: dict[str, Rows]
    notes: tuple[str, ...]

    @property
    def answer_tokens(self) -> int:
        """Of the longest answer of all splits."""
        return max(int(rows.answer_tokens.max()) for rows in self.splits.values() if len(rows))


@lru_cache(maxsize=32)
def load(name: str, source: Questions, tokenizer: Tokenizer) -> Store:
    """The rows of the task `name`, made on first use.

    Raises DataError with file and line for rows that cannot be read, and for a split without rows
    that training needs.
    """
    folder = cache_folder() / "rows" / key(source, tokenizer)
    build(folder, lambda made: _make(made, name, source, tokenizer))
    kind = token_type(tokenizer)
    splits = {split: Rows(folder / split, kind) for split in SPLITS}
    notes = json.loads((folder / "note.json").read_text(encoding="utf-8"))
    if source.train:
        for split in ("train", "validation"):
            if not len(splits[split]):
                count = sum(map(len, splits.values()))
                raise DataError(
                    f"config.data.questions.{name}: of {count:,} rows none is left for {split}"
                    " (without files of their own, validation and test take a tenth of the"
                    f" contexts each): name a file with config.data.questions.{name}.{split}, or"
                    " give more rows."
                )
    return Store(splits, tuple(notes))


def key(source: Questions, tokenizer: Tokenizer) -> str:
    """A hash of what decides the rows: the settings, files by size and time, the tokenizer. Raises
    DataError for a file that is missing or of no known kind."""
    parts = [str(VERSION), tokenizer.fingerprint(), source.layout, repr(source.fields)]
    parts += [source.question, repr(source.labels), str(source.hide)]
    for given in (source.train, source.validation, source.test):
        parts.append(given)
        if path := readers.local_file(given):
            readers.check_file(path)
            stat = path.stat()
            parts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return sha256("\0".join(parts).encode()).hexdigest()[:20]


def _make(made: Path, name: str, source: Questions, tokenizer: Tokenizer) -> None:
    writers = {split: _Writer(made / split, source, tokenizer) for split in SPLITS}
    notes: list[str] = []
    try:
        for split in SPLITS:
            if given := getattr(source, split):
                targets = {split: writers[split]}
                if split == "train":
                    targets |= {s: w for s, w in writers.items() if not getattr(source, s)}
                notes += _read(given, source, split, targets)
    finally:
        for writer in writers.values():
            writer.close()
    notes = [_counted(name, writers), *_shared(writers), *notes]
    (made / "note.json").write_text(json.dumps(notes), encoding="utf-8")


def _read(
    given: str, source: Questions, split: str, targets: dict[str, "_Writer"]
) -> Iterator[str]:
    """Reads one source to its end, each row to the writer of its split; yields notes."""
    ids, skipped = array("Q"), []
    count = 0
    with progress_bar(None, "row", desc=f"reading {given}", delay=3, unit_scale=True) as bar:
        for place, record in readers.read(given):
            for row in layouts.rows(record, place, source):
                bar.update(1)
                count += 1
                if row.id:
                    ids.append(_number(row.id))
                if not row.answers:
                    skipped.append(place)
                    continue
                share = _share(row.context) if split == "train" else split
                targets.get(share, targets[split]).add(row)
    for writer in targets.values():
        writer.flush()
    if not count:
        raise DataError(f"{given} holds no rows.")
    if repeated := len(ids) - len(np.unique(np.frombuffer(ids, np.uint64))):
        yield f"{given}: {repeated:,} rows have the id of another row."
    if skipped:
        places = some(skipped, len(skipped))
        yield f"{given}: {len(skipped):,} rows without an answer are left out ({places})."


class _Writer:
    """Writes the files of one split."""

    def __init__(self, folder: Path, source: Questions, tokenizer: Tokenizer):
        folder.mkdir(parents=True)
        self._files = {n: open(folder / n, "wb") for n in ("tokens", "starts", "table", "lines")}
        self._files["starts"].write(np.int64(0).tobytes())
        self._tokenizer, self._kind, self._hides = tokenizer, token_type(tokenizer), source.hide
        self._known: OrderedDict[bytes, int] = OrderedDict()  # hash -> number of the context
        self._waiting: list[Row] = []
        self._size = self._contexts = self._end = self._at = 0
        self.rows, self.contexts = array("Q"), array("Q")  # hashes

    def add(self, row: Row) -> None:
        self._waiting.append(row)
        self._size += len(row.context)
        if self._size > BATCH:
            self.flush()

    def flush(self) -> None:
        """Writes what waits: contexts first, then the rows that are about them."""
        digests = [_digest(row.context) for row in self._waiting]
        new = {
            digest: row.context
            for digest, row in zip(digests, self._waiting, strict=True)
            if digest not in self._known
        }
        for digest, ids in zip(new, self._encode(list(new.values())), strict=True):
            self._files["tokens"].write(np.asarray(ids, self._kind).tobytes())
            self._end += len(ids)
            self._files["starts"].write(np.int64(self._end).tobytes())
            self._known[digest] = self._contexts
            self._contexts += 1
            self.contexts.append(int.from_bytes(digest[:8]))
        for digest, row in zip(digests, self._waiting, strict=True):
            self._write(row, self._known[digest])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._waiting, self._size = [], 0

    def _encode(self, contexts: list[str]) -> Iterable[np.ndarray | list[int]]:
        short = [" " + context for context in contexts if len(context) <= BATCH]
        found = iter(self._tokenizer.encode_many(short))
        for context in contexts:  # a long one in pieces: the tokenizer needs much room for a text
            if len(context) <= BATCH:
                yield next(found)
            else:
                yield text_stream.encode(self._tokenizer, " " + context)

    def _write(self, row: Row, number: int) -> None:
        """`number`: of the row's context."""
        context = row.context if self._hides else ""
        line = json.dumps([row.question, row.answers, row.place, context], ensure_ascii=False)
        encode, line = self._tokenizer.encode, line.encode()
        longest = max(len(encode(" " + answer)) for answer in row.answers)
        entry = [number, len(encode(" " + row.question)), longest, self._at]
        self._files["table"].write(np.array(entry, np.int64).tobytes())
        self._files["lines"].write(line)
        self._at += len(line)
        self.rows.append(_number("\0".join((row.context, row.question, *row.answers))))

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _counted(name: str, writers: dict[str, _Writer]) -> str:
    counts = ", ".join(f"{len(writer.rows):,} {split}" for split, writer in writers.items())
    contexts = sum(len(writer.contexts) for writer in writers.values())
    return f"{name}: {counts} rows, {contexts:,} contexts."


def _shared(writers: dict[str, _Writer]) -> Iterator[str]:
    """What stands twice, in a split or in two."""
    rows, contexts = (
        {
            split: np.unique(np.frombuffer(getattr(writer, what), np.uint64))
            for split, writer in writers.items()
        }
        for what in ("rows", "contexts")
    )
    for split, writer in writers.items():
        if again := len(writer.rows) - len(rows[split]):
            yield f"{again:,} {split} rows are identical with another row of {split}."
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        same = len(np.intersect1d(rows[first], rows[second], assume_unique=True))
        seen = len(np.intersect1d(contexts[first], contexts[second], assume_unique=True))
        if same or seen:
            yield (
                f"{same:,} rows and {seen:,} contexts stand in {first} and in {second}: what is"
                f" measured on {second} is too good."
            )


def _share(context: str) -> str:
    """train (8 in 10), validation or test, by a hash of the context."""
    return SPLITS[max(0, _number(context) % 10 - 7)]


def _number(text: str) -> int:
    return int.from_bytes(_digest(text)[:8])


def _digest(text: str) -> bytes:
    return sha256(text.encode(errors="surrogatepass")).digest()


def some(places: Sequence[str], count: int) -> str:
    """The first of `count` places, in words."""
    more = f" and {count - SHOWN:,} more" if count > SHOWN else ""
    return f"{'; '.join(places[:SHOWN])}{more}"
