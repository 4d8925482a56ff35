"""Where questions come from: the model's own world, bAbI's files, BABILong's files.

A source hands out `Question`s in a fixed order: number k of a task at a length is always the same.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.data import compose, perturb, prompts, published
from rmt_jax.data.corpus import background
from rmt_jax.data.lengths import Length
from rmt_jax.data.tasks import babi as tasks
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import text_stream
from rmt_jax.evaluation.answering import EncodedQuestion


class QuestionError(RmtError):
    """Questions that cannot be had; the message is a sentence for the user."""


@dataclass(frozen=True)
class Question:
    question: str
    target: str
    encoded: EncodedQuestion
    answer: np.ndarray  # ids of the target, END not included
    characters: int  # of context and question
    gpt2_tokens: float = 0.0  # of the same, where known
    depth: float | None = None  # of the last supporting fact: 0 start, 1 end
    facts: tuple[tuple[int, int], ...] = ()  # places in the context
    supporting: tuple[int, ...] = ()


def prompt_ids(config: Any, tokenizer: Any, task: str, question: str) -> np.ndarray:
    """i32[n] of the task prompt, without padding; `task` is a name of the table or a description in
    words. `config` is the Prompt section."""
    known = task in tasks.TASKS
    told = prompts.text(config.source, task if known else "qa1", question, None if known else task)
    return np.asarray(tokenizer.sentence(told) if told else (), np.int32)


def tail_ids(tokenizer: Any, question: str) -> np.ndarray:
    """i32[m]: the question and the ANSWER token."""
    return np.asarray([*tokenizer.sentence(" ".join(question.split())), tokenizer.answer], np.int32)


def context_text(text: str) -> str:
    """A text as contexts are written in training: single spaces, one in front."""
    return " " + " ".join(text.split())


def ask(model: Any, task: str, question: str, told: str | None = None) -> EncodedQuestion:
    """A question without its context; `told` replaces the task's description."""
    config, learned = model.config, 0
    if config.prompt.source == "learned":
        if task not in config.data.tasks:
            raise QuestionError(
                f"This model has learned prompts for {', '.join(config.data.tasks)}, not {task}."
            )
        learned = config.data.tasks.index(task)
    ids = prompt_ids(config.prompt, model.tokenizer, task if told is None else told, question)
    return EncodedQuestion(np.zeros(0, np.int32), tail_ids(model.tokenizer, question), ids, learned)


def room(model: Any, asked: Sequence[str] = (), renamed: bool = False) -> int:
    """Tokens for an answer, END included: the room of training, or more where the tasks `asked`
    need it. More than that would cut texts otherwise than training did."""
    data = model.config.data
    names = tuple(dict.fromkeys((*data.tasks, *asked)))
    return _sentence(compose.answer_room, names, model.tokenizer, renamed or data.new_names > 0)


class Generated:
    """Stories hidden in background, as in training, of a split that training never saw.

    lengths_by: a tokenizer (GPT-2's, to stand beside published figures) that counts lengths; the
    model then reads the same text in its own tokens. Raises QuestionError.
    """

    def __init__(
        self,
        model: Any,
        *,
        split: str = "validation",
        seed: int | None = None,
        data: Any = None,
        lengths_by: Any = None,
    ):
        self.model, self.split = model, split
        self.seed = model.config.evaluation.seed if seed is None else seed
        self.data = data or model.config.data
        self.counter = lengths_by or model.tokenizer
        self.counted = self.counter.name
        self.composers: dict[tuple[str, bool], compose.Composer] = {}
        self.composer("")  # what is wrong with facts or background is said now

    def composer(self, change: str, whole: bool = False) -> compose.Composer:
        """Of the unchanged world, or of a perturbed one. `whole`: of lengths in segments, which
        are of the model's own tokens whoever counts the others."""
        key = ("" if change in perturb.DESCRIPTIONS else change, whole)
        if key not in self.composers:
            self.composers[key] = _sentence(
                compose.Composer,
                self.data,
                self.model.tokenizer if whole else self.counter,
                self.split,
                segment_tokens=self.model.segment_tokens,
                change=key[0],
            )
        return self.composers[key]

    def describe(self) -> str:
        source, read = self.data.background, []
        if source != "none":
            text = _sentence(background.load, source, self.counter, self.split)
            read += [text.tokens, text.starts]
        if self.data.facts != "simulated":
            read += _files(Path(self.data.babi_dir), "qa*.txt")
        # What was read decides, wherever it lay.
        named = source if source in ("builtin", "none") else "files"
        data = dataclasses.replace(self.data, background=named, babi_dir="", tokenizer="")
        counter = self.counter.fingerprint()
        return repr((data, self.split, self.seed, counter, _digest(read)))

    def tasks(self) -> list[str]:
        return list(tasks.SIMULATED) if self.data.facts == "simulated" else list(tasks.TASKS)

    def perturbations(self) -> list[str]:
        told = self.model.config.prompt.source in ("description", "both")
        found = [n for n in perturb.PERTURBATIONS if told or n not in perturb.DESCRIPTIONS]
        if self.data.background in ("builtin", "none"):
            found.remove("other_background")
        return found

    def tokens(self, length: str) -> int:
        """About how many a text has, for progress and for the size of batches."""
        return _length(length, self.model.segment_tokens).tokens or 100

    def room(self, task: str, how: str = "") -> int:
        return room(self.model, (task,), how.startswith("new_") or self.data.new_names > 0)

    def count(self, task: str, length: str, samples: int) -> int:
        _sentence(tasks.task, task)
        _length(length, self.model.segment_tokens)
        return samples

    def check(self, how: str) -> None:
        """Raises QuestionError for a perturbation that there is not, or not here."""
        _sentence(perturb.check, how)
        if how in perturb.DESCRIPTIONS and how not in self.perturbations():
            raise QuestionError(
                f"'{how}' does not apply: this model is not told its task in words "
                f"(config.prompt.source is {self.model.config.prompt.source})."
            )
        self.composer(how)

    def ask(self, task: str, length: str, which: range, how: str = "") -> list[Question]:
        return [self._one(task, length, k, how) for k in which]

    def _one(self, task: str, length: str, k: int, how: str) -> Question:
        composer = self.composer(how, _length(length, self.model.segment_tokens).whole)
        s = _sentence(composer.sample, task, length, self.seed, k)
        told = perturb.description(how, task, k)
        asked = ask(self.model, task, s.question, told)
        facts, context, parts = (
            s.facts,
            s.context,
            text_stream.decode_pieces(composer.tokenizer, s.context),
        )
        if composer.tokenizer is self.model.tokenizer:
            characters = sum(map(len, parts))
        else:
            text = "".join(parts)
            characters, facts = len(text), ()
            context = text_stream.encode(self.model.tokenizer, text)
        by_gpt2 = "gpt2" in composer.tokenizer.name
        gpt2 = len(s.context) + len(s.question_ids) if by_gpt2 else 0
        return Question(
            s.question,
            s.answer,
            dataclasses.replace(asked, context=context),
            np.asarray(self.model.tokenizer.sentence(s.answer), np.int32),
            characters + len(s.question) + 1,
            gpt2,
            max(s.depths) if s.depths else None,
            facts,
            s.supporting,
        )


class Files:
    """BABILong's published evaluation sets, or files like them (`data.published` reads them, a
    record at a time)."""

    counted = "whoever made the files"

    def __init__(self, model: Any, place: str):
        self.model, self.place = model, place  # a folder, or a dataset's name on the hub
        self.open: dict[tuple[str, str], tuple[int, Iterator[dict[str, str]]]] = {}

    def describe(self) -> str:
        folder = Path(self.place)
        if not folder.is_dir():
            return self.place
        return _digest(_files(folder, "**/*"))

    def tasks(self) -> list[str]:
        names = {p.name for p in Path(self.place).glob("**/qa*") if p.is_dir()}
        return sorted(names & set(tasks.TASKS), key=tasks.number)

    def perturbations(self) -> list[str]:
        told = self.model.config.prompt.source in ("description", "both")
        return list(perturb.DESCRIPTIONS) if told else []

    def tokens(self, length: str) -> int:
        return _length(length, self.model.segment_tokens).tokens or 100

    def room(self, task: str, how: str = "") -> int:
        return room(self.model, (task,))

    def records(self, task: str, length: str) -> Iterator[dict[str, str]]:
        """Raises QuestionError naming the file, and the record where one is wrong."""
        rows = published.read(self.place, task, length)
        while True:
            row = _sentence(next, rows, None)
            if row is None:
                return
            yield row

    def count(self, task: str, length: str, samples: int) -> int:
        have = sum(1 for _ in zip(self.records(task, length), range(samples), strict=False))
        return have

    def check(self, how: str) -> None:
        """Raises QuestionError for a perturbation that does not apply to files."""
        _sentence(perturb.check, how)
        if how and how not in self.perturbations():
            raise QuestionError(
                f"'{how}' needs generated texts, or a model told its task in words."
            )

    def ask(self, task: str, length: str, which: range, how: str = "") -> list[Question]:
        at, rows = self.open.pop((task, length), (0, iter(())))
        if at != which.start or at == 0:
            at, rows = 0, self.records(task, length)
        found = []
        for row in rows:
            if at >= which.start:
                found.append(self._one(task, length, at, row, how))
            at += 1
            if at == which.stop:
                break
        self.open[task, length] = (at, rows)
        return found

    def _one(self, task: str, length: str, k: int, row: dict[str, str], how: str) -> Question:
        text, question, target = row["input"], row["question"], row["target"]
        told = perturb.description(how, task, k)
        asked = ask(self.model, task, question, told)
        context = text_stream.encode(self.model.tokenizer, context_text(text))
        nominal = _length(length, self.model.segment_tokens)
        return Question(
            question,
            target,
            dataclasses.replace(asked, context=context),
            np.asarray(self.model.tokenizer.sentence(target), np.int32),
            len(text) + len(question),
            float(nominal.tokens) if not nominal.whole else 0.0,
        )


def open_source(
    data: str,
    model: Any,
    *,
    split: str = "",
    seed: int | None = None,
    babi: str = "",
    background: str = "",
    lengths_by: str = "",
) -> Any:
    """The source that `--data` names. Raises QuestionError."""
    settings = model.config.data
    if background:
        settings = dataclasses.replace(settings, background=background)
    if data == "official" or (data != "generated" and _has_babi(Path(data))):
        folder = babi if data == "official" else data
        if not (folder or settings.babi_dir):
            raise QuestionError(
                "--data official needs bAbI's text files: name their folder with --babi, or give "
                "a folder of BABILong's own files as --data FOLDER."
            )
        folder = folder or settings.babi_dir
        settings = dataclasses.replace(settings, facts="official", babi_dir=folder)
        split = split or ("test" if any(Path(folder).glob("qa*_test.txt")) else "")
    elif data != "generated":
        if not Path(data).is_dir() and (data.count("/") != 1 or data.startswith((".", "/"))):
            raise QuestionError(
                "--data is 'generated', 'official', a folder, or a dataset on the hub such as "
                f"RMT-team/babilong; there is no folder {data}."
            )
        given = {"--split": split, "--babi": babi, "--background": background}
        unused = [name for name, value in (given | {"--lengths_by": lengths_by}).items() if value]
        if unused:
            raise QuestionError(
                f"{data} holds finished texts, which {' and '.join(unused)} cannot change: leave "
                "that out."
            )
        return Files(model, data)
    counter = None
    if lengths_by:
        from rmt_jax.data import tokenizer

        counter = _sentence(tokenizer.load, lengths_by)
    return Generated(
        model, split=split or "validation", seed=seed, data=settings, lengths_by=counter
    )


def _files(folder: Path, pattern: str) -> Iterator[bytes]:
    """The names of files in a folder, each with a hash of what is in it."""
    for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
        yield path.relative_to(folder).as_posix().encode()
        with open(path, "rb") as file:
            yield hashlib.file_digest(file, "sha256").digest()


def _digest(parts: Iterable[Any]) -> str:
    """A hash of bytes and arrays: the same where the same was read. (By their times,
    a copy of the same books was other books, and hours of answers were asked anew.)"""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _has_babi(folder: Path) -> bool:
    return any(re.match(r"qa\d+_.*\.txt$", p.name) for p in folder.glob("qa*_*.txt"))


def _length(length: str, segment: int) -> Length:
    return _sentence(Length.parse, length, segment)


def _sentence(function: Any, *args: Any, **named: Any) -> Any:
    """The data room's errors are sentences already: only their name changes."""
    try:
        return function(*args, **named)
    except QuestionError:
        raise
    except (ValueError, OSError) as error:
        raise QuestionError(str(error)) from error


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Task names, checked. Raises QuestionError for an unknown one."""
    for name in names:
        _sentence(tasks.task, name)
    return tuple(names)
