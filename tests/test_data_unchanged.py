"""Random draws are part of what is published: the same address gives the same batch, to the bit.

The digests were taken once. A change here makes every trained checkpoint's data another one, and
needs a reason. Print them anew with `python tests/test_data_unchanged.py`.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rmt_jax.config import Data
from rmt_jax.data import perturb, tokenizer
from rmt_jax.data.compose import Composer
from rmt_jax.data.loader import Loader

ROOT = Path(__file__).parents[1]
PINS = Path(__file__).with_name("data_unchanged.json")
SHARED = os.environ.get("RMT_JAX_SHARED")
SIMULATED = ("qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10")


def digest(values) -> str:
    """Of arrays, texts and tuples of them, by value; None counts for nothing."""
    found = hashlib.sha256()

    def add(value):
        if value is None:
            return
        if isinstance(value, (tuple, list)):
            for one in value:
                add(one)
        elif isinstance(value, str):
            found.update(value.encode())
        else:
            array = np.asarray(value)
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())

    add(values)
    return found.hexdigest()[:16]


def books(folder: Path) -> str:
    """A background folder: novels of a kind, some sentences with names that the tasks have."""
    draw = random.Random(0)
    nouns = "kitchen garden letter lamp office river apple window story bedroom milk road".split()
    verbs = "remembered carried followed painted crossed forgot described counted left".split()
    for number in range(12):
        lines = [
            f"The {draw.choice(nouns)} that nobody {draw.choice(verbs)} stood by the "
            f"{draw.choice(nouns)} when the {draw.choice(nouns)} of page {i} was told again."
            for i in range(400)
        ]
        (folder / f"book{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


def preset(file: str, name: str):
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(name)


def on_books(config, folder: str, **data):
    """The config with our books (the built-in background differs between versions of Python)."""
    return config.replace(data=dataclasses.replace(config.data, background=folder, **data))


def long_like(folder: str, **data):
    """The preset `long` (hard negatives, memory drift, 32 segments), from data that is here."""
    return on_books(preset("multitask", "long"), folder, **(dict(facts="simulated") | data))


def batches(config, steps) -> list[str]:
    loader = Loader(config, tokenizer.load(), "train")
    return [digest(tuple(loader.batch_at(step))) for step in steps]


def samples(
    change: str, folder: str, split: str = "validation", tasks=SIMULATED, **data
) -> list[str]:
    """One sample per task; a perturbation's window, names and background included."""
    given = Data(tasks=tasks, background=folder, **data)
    composer = Composer(given, tokenizer.load(), split, change=change)
    found = []
    for task in tasks:
        made = composer.sample(task, "1k", 1, 7)
        found.append(digest((made.context, made.question, made.answer, made.facts)))
    return found


def validation(folder: str) -> list[str]:
    config = on_books(preset("multitask", "five"), folder)
    loader = Loader(config, tokenizer.load(), "validation")
    return [digest(tuple(one)) for one in loader.evaluation_batches(4, 2, batch=10)]


def computed(folder: str) -> dict[str, list[str]]:
    found = {}
    for name in ("five", "armt"):
        found[name] = batches(on_books(preset("multitask", name), folder), (0, 1, 399))
    found["long-like"] = batches(long_like(folder), (0, 1, 899, 900))
    found["long-like, new names"] = batches(long_like(folder, new_names=0.5), (0, 901))
    found["pretrain:memory"] = batches(on_books(preset("pretrain", "memory"), folder), (0, 1))
    found["validation"] = validation(folder)
    elsewhere = {"other_background", "other_description"}  # not of these tasks and texts
    changes = ("", *(c for c in perturb.PERTURBATIONS if c not in elsewhere))
    found |= {f"sample {c}": samples(c, folder) for c in changes}
    return found


def official(folder: str) -> dict[str, list[str]]:
    assert SHARED
    babi = str(Path(SHARED, "data", "babi", "en-10k"))
    every = tuple(f"qa{i}" for i in range(1, 21))
    found = {"long, both": batches(long_like(folder, facts="both", babi_dir=babi), (0, 900))}
    for split in ("train", "validation"):
        found[f"official {split}"] = samples(
            "", folder, split, every, facts="official", babi_dir=babi
        )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return books(tmp_path_factory.mktemp("books"))


def test_batches_and_samples_are_those_of_the_first_day(folder):
    pinned = json.loads(PINS.read_text())
    found = computed(folder)
    assert {name: pinned[name] for name in found} == found
    five = pinned["five"]
    assert len(set(five)) == len(five)


@pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED is not set")
def test_batches_with_official_facts_too(folder):
    pinned = json.loads(PINS.read_text())
    found = official(folder)
    assert {name: pinned[name] for name in found} == found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        everything = computed(books(Path(name)))
        if SHARED:
            everything |= official(books(Path(name)))
    json.dump(everything, sys.stdout, indent=1)
