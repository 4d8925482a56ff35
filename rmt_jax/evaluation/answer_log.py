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
    but the number of questions. Rows under another key step aside, as TASK_LENGTH.KEY.jsonl, and
    come back when they are asked for again."""

    def __init__(self, folder: Path | None, stem: str, key: str):
        self.file = None if folder is None else folder / f"{stem}.jsonl"
        self.head = json.dumps({"key": key})
        if self.file is not None and (other := _key(self.file)) not in ("", key):
            os.replace(self.file, self.file.with_suffix(f".{other}.jsonl"))
        if self.file is not None and _key(aside := self.file.with_suffix(f".{key}.jsonl")) == key:
            os.replace(aside, self.file)
        self.rows, self.whole = self._read()

    def add(self, rows: Sequence[Row]) -> None:
        """Behind the others, in the file too when this returns."""
        self.rows += rows
        if self.file is None:
            return
        if not self.whole:
            tables.replace(self.file, _lines([self.head, *map(_line, self.rows)]))
            self.whole = True
            return
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(_lines(map(_line, rows)))

    def _read(self) -> tuple[list[Row], bool]:
        """Rows of this key, and whether the file holds them and nothing else."""
        text = _text(self.file) if self.file else ""
        head, *lines = text.split("\n")
        if head != self.head:
            return [], False
        rows = []
        for line in lines:
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):  # a kill in the middle of a line
                break
        return rows, _lines([head, *lines[: len(rows)]]) == text


def _text(file: Path) -> str:
    """Empty for what cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _key(file: Path) -> str:
    """Whose rows a file holds; empty where there is none, or none of ours."""
    try:
        return json.loads(_text(file).split("\n")[0])["key"]
    except (ValueError, TypeError, KeyError):
        return ""


def _line(row: Row) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
