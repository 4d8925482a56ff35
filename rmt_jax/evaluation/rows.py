"""What was asked and answered, a line each, kept as it comes: OUT/cells/TASK_LENGTH.jsonl.

The first line says which evaluation the answers belong to. Stopped anywhere, an evaluation goes on
with the question after the last line; asked for more questions, it asks the new ones only.
"""

import dataclasses
import json
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
    but the number of questions; rows under another key are overwritten by the first new ones."""

    def __init__(self, folder: Path | None, stem: str, key: str):
        self.file = None if folder is None else folder / f"{stem}.jsonl"
        self.head = json.dumps({"key": key})
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
        try:
            text = self.file.read_text(encoding="utf-8") if self.file else ""
        except (OSError, UnicodeDecodeError):
            return [], False
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


def _line(row: Row) -> str:
    return json.dumps(dataclasses.asdict(row), ensure_ascii=False)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
