"""Rows for the tests: files of them, and configs that read these."""

import json

from rmt_jax.config import Config, Data, Model, Questions, Stage
from rmt_jax.data import tokenizer
from rmt_jax.data.rows import store

TOKENS = tokenizer.load()
FILLER = "The weather was fine and we talked about it for a while. "


def row(number: int, sentences: int = 1, answer: str = "") -> dict:
    """The answer stands in the middle of so many sentences."""
    word = answer or ("north", "south", "east", "west")[number % 4]
    half = FILLER * (sentences // 2)
    text = f"{half}Ticket {number} goes {word}. {half}"
    return {"context": text, "question": "Where does it go?", "answer": word}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def config(source: Questions, segments=4, size=32, align="left", **data) -> Config:
    return Config(
        model=Model(segment_tokens=size),
        data=Data(**({"tasks": ("own",), "questions": {"own": source}, "align": align} | data)),
        stages=(Stage(segments, steps=50, batch=8, learning_rate=1e-3),),
    )


def rows_of(source: Questions, split="train"):
    return [store.load("own", source, TOKENS).splits[split].text(i) for i in range(
        len(store.load("own", source, TOKENS).splits[split]))]  # fmt: skip
