"""Samples as text records {input, question, target}: what is written to disk, in parts.

A part is a range of samples of one task and length; parts can be made on many machines and in any
order, appear by an atomic rename, and are joined when all are there.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rmt_jax import config
from rmt_jax.data import simulator, tokenizer
from rmt_jax.data.babi import files, official
from rmt_jax.data.compose import Composer
from rmt_jax.data.lengths import Length
from rmt_jax.data.simulator import Manner
from rmt_jax.data.story import Story
from rmt_jax.files import atomic_open

Record = dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """All that decides the samples of a length."""

    length: str = "0k"
    tasks: tuple[str, ...] = ("qa1", "qa2", "qa3", "qa4", "qa5")
    samples: int = 1000
    seed: int = 0
    facts: str = "simulated"  # simulated | official
    babi_dir: str = ""
    part: str = "test"  # official: which file is gone through, in file order
    background: str = "builtin"
    tokenizer: str = "builtin"
    split: str = "test"  # of the background, and of simulated stories


class FileOrder:
    """Official questions in file order, those with too many facts left out: as BABILong's rows."""

    def __init__(self, folder: str, part: str):
        self.folder, self.part = folder, part

    def rows(self, task: str, most: int) -> list[files.Item]:
        items = files.cached(files.find(self.folder, task, self.part))
        return [item for item in items if len(item.facts) <= most]

    def story(self, task: str, seed: int, index: int, most: int, manner: Manner) -> Story:
        rows = _rows(self.folder, self.part, task, most)
        if index >= len(rows):
            raise ValueError(
                f"{task} has {len(rows):,} {self.part} questions of {most:,} facts or fewer, so "
                f"there is no row {index:,}: ask for fewer --samples."
            )
        item = rows[index]
        return Story(task, item.facts, item.question, item.answer, item.supporting)


@lru_cache(maxsize=64)
def _rows(folder: str, part: str, task: str, most: int) -> list[files.Item]:
    return FileOrder(folder, part).rows(task, most)


@lru_cache(maxsize=8)
def _composer(recipe: Recipe) -> Composer:
    data = config.Data(
        tasks=recipe.tasks,
        facts=recipe.facts,
        babi_dir=recipe.babi_dir,
        background=recipe.background,
        tokenizer=recipe.tokenizer,
    )
    facts = None
    if recipe.facts == "official":
        facts = FileOrder(recipe.babi_dir, recipe.part)
    return Composer(data, tokenizer.load(recipe.tokenizer), recipe.split, facts=facts)


def available(recipe: Recipe, task: str) -> int:
    """How many samples there are: fewer than asked for where the official file ends."""
    if recipe.facts != "official":
        return recipe.samples
    path = files.find(recipe.babi_dir, task, recipe.part)
    budget = Length.parse(recipe.length, 512).tokens
    return min(recipe.samples, len(official.evaluation_order(path, budget)))


def records(recipe: Recipe, task: str, which: range) -> Iterator[Record]:
    """Records of a task, in order. Raises ValueError as `Composer.sample` does."""
    composer = _composer(recipe)
    for index in which:
        sample = composer.sample(task, recipe.length, recipe.seed, index, simulator.OFFICIAL)
        text = composer.tokenizer.decode(sample.context).strip()
        yield {"input": text, "question": sample.question, "target": sample.answer}


def part_path(folder: Path, task: str, length: str, part: int, parts: int) -> Path:
    return folder / f"{task}-{length}-{part:05d}-of-{parts:05d}.jsonl"


def part_range(samples: int, part: int, parts: int) -> range:
    """The samples of a part: equal shares, in order."""
    return range(samples * part // parts, samples * (part + 1) // parts)


def write_part(path: Path, found: Iterator[Record]) -> None:
    """An object a line, by atomic rename."""
    with atomic_open(path) as file:
        for record in found:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_parts(folder: Path, task: str, length: str, parts: int) -> Iterator[Record]:
    """All records of a task and length, in order. OSError where one of the parts is missing."""
    for part in range(parts):
        with open(part_path(folder, task, length, part, parts), encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def write_json(path: Path, found: Iterator[Record]) -> None:
    """BABILong's layout: a JSON list, an object a sample, by atomic rename. One record is held at a
    time, so that 10M-token files need no memory."""
    with atomic_open(path) as file:
        file.write("[")
        for number, record in enumerate(found):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")
