"""Background text, tokenised once and mapped from disk: the haystack.

A split is two flat arrays in the cache folder: token ids, and where each sentence begins. Sentences
under ten tokens are left out when the arrays are made (the authors skip them when they draw), so a
haystack is one slice, however long. Nothing is held in memory.
"""

import shutil
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmt_jax.data.corpus import documents
from rmt_jax.data.corpus.cache import build, map_array, token_type
from rmt_jax.data.errors import DataError
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.files import atomic_open, cache_errors, cache_folder

MIN_TOKENS = 10  # shorter sentences are skipped (BABILong)
VERSION = 3  # of the arrays and of the sentence splitter
ALL = "all"  # in place of a split
_BLOCK = 2000  # sentences tokenised at a time


class Slice(NamedTuple):
    """Consecutive sentences, the last one cut to fit."""

    tokens: np.ndarray  # i32[n]
    starts: np.ndarray  # i64[k] where each sentence begins


class Background:
    def __init__(self, tokens: np.ndarray, starts: np.ndarray, name: str, split: str):
        self.tokens = tokens  # u16 or i32, mapped from disk
        self.starts = starts  # i64[k + 1], mapped from disk
        self.name, self.split = name, split
        if len(starts) < 2:
            raise DataError(
                f"Background {name!r} has no sentence of {MIN_TOKENS} tokens or more in its "
                f"{split} split: give more text (documents go 8:1:1 to train, validation, test), or"
                " take all of texts that training never saw: --background_split all, of"
                " rmt_jax.evaluate and rmt_jax.prepare."
            )

    @property
    def sentences(self) -> int:
        return len(self.starts) - 1

    def take(self, first: int, tokens: int) -> Slice:
        """`tokens` tokens from sentence `first` on; after the last sentence comes the first."""
        total = len(self.tokens)
        begin = int(self.starts[first])
        if begin + tokens <= total:
            last = int(np.searchsorted(self.starts, begin + tokens, "left"))
            starts = self.starts[first:last] - begin
            return Slice(np.asarray(self.tokens[begin : begin + tokens], np.int32), starts)
        pieces, marks, done = [], [], 0
        while done < tokens:
            size = min(total - begin, tokens - done)
            last = int(np.searchsorted(self.starts, begin + size, "left"))
            marks.append(self.starts[first:last] - begin + done)
            pieces.append(np.asarray(self.tokens[begin : begin + size], np.int32))
            done, begin, first = done + size, 0, 0
        return Slice(np.concatenate(pieces), np.concatenate(marks))

    @lru_cache(maxsize=4)  # noqa: B019 (a background is kept as long as the process)
    def sentences_with(self, tokens: tuple[int, ...]) -> "Background":
        """The sentences in which one of these tokens stands, as a background of their own."""
        wanted, size = np.array(tokens, self.tokens.dtype), 10_000_000  # of what is mapped, a part
        parts = range(0, len(self.tokens), size)
        found = [np.flatnonzero(np.isin(self.tokens[i : i + size], wanted)) + i for i in parts]
        found = np.concatenate(found)
        kept = np.unique(np.searchsorted(self.starts, found, "right") - 1)
        spans = [self.tokens[self.starts[i] : self.starts[i + 1]] for i in kept]
        if not spans:
            raise DataError(
                f"No sentence of the background {self.name!r} ({self.split} split) holds a name of "
                "the tasks: give more text, or set config.data.hard_negative_rate to 0."
            )
        starts = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
        return Background(np.concatenate(spans), starts, self.name, self.split)


@lru_cache(maxsize=2)
def of_sentences(sentences: tuple[str, ...], tokenizer: Tokenizer) -> Background | None:
    """These sentences as a background, in memory; None of none."""
    if not sentences:
        return None
    found = tokenizer.encode_many([f" {sentence}" for sentence in sentences])
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in found])])
    return Background(np.concatenate(found).astype(np.int32), starts, "sentences", "")


def load(source: str, tokenizer: Tokenizer, split: str) -> Background:
    """The background of a split ('train', 'validation', 'test', or 'all': one after another), made
    on first use.

    `source` is 'builtin' or a folder of .txt files. Raises DataError for a missing or empty
    folder and for files that are not text.
    """
    if split not in (*documents.SPLITS, ALL):
        raise DataError(f"Unknown split {split!r}: one of {', '.join(documents.SPLITS)}, {ALL}.")
    folder = cache_folder() / "background" / key(source, tokenizer)
    return _open(str(folder), source, tokenizer, split)


def key(source: str, tokenizer: Tokenizer) -> str:
    """A hash of what decides the arrays: the text, by content or by name, size and time. Raises
    DataError as `load` does."""
    digest = sha256(f"{VERSION} {MIN_TOKENS} {tokenizer.fingerprint()}".encode())
    for name, owner, content in documents.documents(source):
        digest.update(f"{name}\0{owner}\0".encode())
        if source == "builtin":
            digest.update(content.encode())
        else:
            stat = Path(content).stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]


@lru_cache(maxsize=16)
def _open(folder_name: str, source: str, tokenizer: Tokenizer, split: str) -> Background:
    folder = Path(folder_name)
    build(folder, lambda made: _make(made, source, tokenizer))
    if split == ALL and not (folder / f"{ALL}.starts").is_file():
        with cache_errors(folder):
            _join(folder)
    tokens = map_array(folder / f"{split}.tokens", token_type(tokenizer))
    starts = map_array(folder / f"{split}.starts", np.dtype(np.int64))
    return Background(tokens, starts, source, split)


def _make(made: Path, source: str, tokenizer: Tokenizer) -> None:
    """Writes all splits into a folder."""
    files = {s: (open(made / f"{s}.tokens", "wb"), open(made / f"{s}.starts", "wb"))
             for s in documents.SPLITS}  # fmt: skip
    at = dict.fromkeys(documents.SPLITS, 0)
    try:
        for _, key, content in documents.documents(source):
            text = content if source == "builtin" else documents.read(content)
            split = documents.split_of(key)
            at[split] = _append(files[split], at[split], text, tokenizer)
        for split, (_, starts) in files.items():
            starts.write(np.int64(at[split]).tobytes())
    finally:
        for tokens, starts in files.values():
            tokens.close()
            starts.close()


def _join(folder: Path) -> None:
    """Writes the arrays of all splits, one after another."""
    at, starts = 0, []
    with atomic_open(folder / f"{ALL}.tokens", binary=True) as joined:
        for split in documents.SPLITS:
            with open(folder / f"{split}.tokens", "rb") as part:
                shutil.copyfileobj(part, joined)
            found = np.fromfile(folder / f"{split}.starts", np.int64)
            starts.append(found[:-1] + at)
            at += int(found[-1])
    with atomic_open(folder / f"{ALL}.starts", binary=True) as joined:
        joined.write(np.concatenate([*starts, [at]]).astype(np.int64).tobytes())


def _append(files, at: int, text: str, tokenizer: Tokenizer) -> int:
    kind = token_type(tokenizer)
    found = [" " + sentence for sentence in documents.sentences(text)]
    for block in range(0, len(found), _BLOCK):
        kept = [i for i in tokenizer.encode_many(found[block : block + _BLOCK])
                if len(i) >= MIN_TOKENS]  # fmt: skip
        lengths = np.array([len(ids) for ids in kept], np.int64)
        if not len(kept):
            continue
        files[0].write(np.concatenate([np.asarray(ids, kind) for ids in kept]).tobytes())
        files[1].write((at + np.concatenate([[0], np.cumsum(lengths)[:-1]])).tobytes())
        at += int(lengths.sum())
    return at
