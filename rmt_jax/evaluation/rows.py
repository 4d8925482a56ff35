"""What was asked and answered, a line each, kept as it comes: OUT/cells/TASK_LENGTH.jsonl.

The first line says which evaluation the answers belong to. Stopped anywhere, an evaluation goes on
with the question after the last line; asked for more questions, it asks the new ones only.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmt_jax.report import tables


@dataclass(frozen=True)
class Row:
    """One question and its answer."""

    question: str
    target: str
    output: str
    control: str | None  # the answer with the memory reset; None: not asked for
    depth: float | None  # of the last supporting fact: 0 start, 1 end
    tokens: int  # of the text and the question, in the model's own tokens
    characters: int
    gpt2_tokens: float
    seconds: float  # its share of its batch


class Kept:
    """The rows of one cell, in a file if there is a folder. `key`: of all that answers depend on
    but the number of questions. Rows under another key are put aside by the first new ones, as
    TASK_LENGTH.KEY.jsonl, and found there when they are asked for again."""

    def __init__(self, folder: Path | None, stem: str, key: str):
        self.file = None if folder is None else folder / f"{stem}.jsonl"
        self.key, self.head = key, json.dumps({"key": key})
        self.rows, self.whole = self._read()

    def add(self, rows: Sequence[Row]) -> None:
        """Behind the others, in the file too when this returns."""
        self.rows += rows
        if self.file is None:
            return
        if not self.whole:
            self._put_aside()
            tables.replace(self.file, _lines([self.head, *map(_line, self.rows)]))
            self.whole = True
            return
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(_lines(map(_line, rows)))

    def _read(self) -> tuple[list[Row], bool]:
        """Rows of this key, and whether the file holds them and nothing else."""
        if self.file is None:
            return [], False
        head, *lines = text = _text(self.file)
        whole = head == self.head
        if not whole:
            head, *lines = _text(self._aside(self.key))
            if head != self.head:
                return [], False
        rows = []
        for line in lines:
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):  # a kill in the middle of a line
                break
        return rows, whole and [head, *lines[: len(rows)], ""] == text

    def _put_aside(self) -> None:
        assert self.file is not None
        try:
            key = json.loads(_text(self.file)[0])["key"]
        except (ValueError, TypeError, KeyError):
            return  # no file, or none of ours
        if key != self.key:
            os.replace(self.file, self._aside(key))

    def _aside(self, key: str) -> Path:
        assert self.file is not None
        return self.file.with_suffix(f".{key}.jsonl")


def _text(file: Path) -> list[str]:
    """Its lines, of which the last is empty in a whole file; one empty line for what cannot be
    read."""
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return [""]


def _line(row: Row) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
