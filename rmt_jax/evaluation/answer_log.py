"""The answer log: every question and its answer, kept as it comes in OUT/answers/TASK_LENGTH.jsonl.

The first line names the evaluation that the answers belong to. An evaluation that was stopped
continues after the last line; with more questions asked for, it asks only the new ones. Where
several processes share the questions, each holds all answers, and the first one writes them.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from rmt_jax.files import naming, write_text
from rmt_jax.runtime import mesh, startup

Record = TypeVar("Record")


@dataclass(frozen=True)
class AnswerRecord:
    """One question and its answer."""

    question: str
    target: str
    output: str
    reset_output: str | None  # the answer with the memory reset; None: not asked for
    depth: float | None  # of the last supporting fact: 0 start, 1 end
    tokens: int  # of the text and the question, in the model's own tokens
    characters: int
    gpt2_tokens: float
    seconds: float  # its share of its batch
    other_targets: tuple[str, ...] = ()  # answers that are right as well
    parts: tuple[str, ...] = ()  # of an answer that is a list
    facts: int = 0  # in the text, where they are known

    def __post_init__(self) -> None:
        for name in ("other_targets", "parts"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


class AnswerLog(Generic[Record]):
    """The records of one task at one length; in a file if there is a folder. All processes of a
    cluster make one, and call it together.

    Args:
      folder: where the file lies; None keeps the records in memory alone.
      stem: the file's name without its ending.
      key: a hash of all that answers depend on but the number of questions. A file under another
        key is set aside as TASK_LENGTH.KEY.jsonl, and put back when that key is asked for again.
      kind: the dataclass that a line holds.
    """

    def __init__(self, folder: Path | None, stem: str, key: str, kind: type[Record] = AnswerRecord):
        self._kind, self.folder, self.key = kind, folder, key
        self.file = None if folder is None or not startup.owner() else folder / f"{stem}.jsonl"
        self.header = json.dumps({"key": key})
        if self.file is not None and (other := _key(self.file)) not in ("", key):
            os.replace(self.file, self.file.with_suffix(f".{other}.jsonl"))
        if self.file is not None and _key(aside := self.file.with_suffix(f".{key}.jsonl")) == key:
            os.replace(aside, self.file)
        found, self.intact = self._read()
        self.records = self._said(found)[0]

    def append(self, new: Sequence[Record]) -> None:
        """Adds records behind the others, those of each process in their order; they are in the
        file when this returns."""
        records = [record for one in self._said(new) for record in one]
        self.records += records
        if self.file is None:
            return
        if not self.intact:
            write_text(self.file, _join([self.header, *map(_to_json, self.records)]))
            self.intact = True
            return
        with naming(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(_join(map(_to_json, records)))

    def _said(self, records: Sequence[Record]) -> list[list[Record]]:
        """The records of each process."""
        if jax.process_count() == 1:
            return [list(records)]
        said = mesh.exchange(f"[{','.join(map(_to_json, records))}]".encode())
        return [[self._kind(**one) for one in json.loads(part)] for part in said]

    def _read(self) -> tuple[list[Record], bool]:
        """The records of this key, and whether the file holds them and nothing else."""
        text = _text(self.file) if self.file else ""
        header, *lines = text.split("\n")
        if header != self.header:
            return [], False
        records = []
        for line in lines:
            try:
                records.append(self._kind(**json.loads(line)))
            except (ValueError, TypeError):  # the process was killed in the middle of a line
                break
        return records, _join([header, *lines[: len(records)]]) == text


def _text(file: Path) -> str:
    """Empty for what cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _key(file: Path) -> str:
    """The key of an answer log; empty where the file is missing or is none."""
    try:
        return json.loads(_text(file).split("\n")[0])["key"]
    except (ValueError, TypeError, KeyError):
        return ""


def _to_json(record: Any) -> str:
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False)


def _join(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
