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
from rmt_jax.data import tasks, tokenizer
from rmt_jax.data.babi import files, official, table
from rmt_jax.data.compose import Composer
from rmt_jax.data.lengths import Length
from rmt_jax.data.tasks import babi
from rmt_jax.files import atomic_open

Record = dict[str, str]
TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")  # of a recipe that names none


@dataclass(frozen=True)
class Recipe:
    """All that decides the samples of a length."""

    length: str = "0k"
    tasks: tuple[str, ...] = TASKS
    samples: int = 1000
    seed: int = 0
    facts: str = "simulated"  # simulated | official
    babi_dir: str = ""
    part: str = "test"  # official: which file is gone through, in file order
    background: str = "builtin"
    tokenizer: str = "builtin"
    split: str = "test"  # of the background, and of simulated stories
    background_split: str = ""  # of the background alone, or all of it


@lru_cache(maxsize=8)
def _composer(recipe: Recipe) -> Composer:
    data = config.Data(
        tasks=recipe.tasks,
        facts=recipe.facts,
        babi_dir=recipe.babi_dir,
        background=recipe.background,
        tokenizer=recipe.tokenizer,
    )
    found = tasks.create_all(data)
    if recipe.facts == "official":  # bAbI's in file order
        source = official.FileOrder(recipe.babi_dir, recipe.part)
        rows = {name: table.ROWS[name] for name in found if name in table.ROWS}
        found |= {name: babi.Babi(row, data, source) for name, row in rows.items()}
    return Composer(
        data,
        tokenizer.load(recipe.tokenizer),
        recipe.split,
        tasks=found,
        background_split=recipe.background_split,
    )


def available(recipe: Recipe, task: str) -> int:
    """How many samples there are: fewer than asked for where the official file ends."""
    if recipe.facts != "official" or task not in table.ROWS:
        return recipe.samples
    path = files.find(recipe.babi_dir, task, recipe.part)
    budget = Length.parse(recipe.length, 512).tokens
    return min(recipe.samples, len(official.evaluation_order(path, budget)))


def records(recipe: Recipe, task: str, which: range) -> Iterator[Record]:
    """Records of a task, in order. Raises DataError as `Composer.sample` does."""
    composer = _composer(recipe)
    for index in which:
        sample = composer.sample(task, recipe.length, recipe.seed, index)
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
