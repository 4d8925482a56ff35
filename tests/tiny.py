"""Tiny models and texts for the tests: sizes that compile in a second."""

import numpy as np
import pytest
from flax import nnx

from rmt_jax import config, models
from rmt_jax.types import Batch, Prompt

VOCAB, LENGTH, WORDS = 37, 8, 3
CELLS = ("none", "rmt", "prmt", "armt", "delta", "kv")


def cells(*fast: str, of=CELLS) -> list:
    """Parameters of a test: the cells, those that are not named marked slow."""
    return [pytest.param(c, marks=[pytest.mark.slow] * (c not in fast)) for c in of]


def settings(**changes) -> config.Model:
    values = dict(
        cell="rmt", layers=2, width=16, heads=2, max_positions=32, segment_tokens=LENGTH,
        memory_tokens=2, d_mem=4, dtype="float32",
    )  # fmt: skip
    if changes.get("cell") == "kv":
        values["cell_options"] = {"slots": 12}  # fewer than the tokens of a text
    return config.Model(**(values | changes))


def model(prompt=None, lora=None, **changes):
    """A model whose every weight is drawn, so that nothing hides behind a zero."""
    prompt = prompt or config.Prompt("none", "every", WORDS)
    model = settings(**changes)  # only its shapes: drawing here would compile every draw
    built = nnx.eval_shape(lambda: models.build(model, prompt, VOCAB, 2, nnx.Rngs(0), lora))
    graph, params = models.split(built)
    rng = np.random.default_rng(0)

    def draw(value):
        if isinstance(value, dict):
            return {name: draw(part) for name, part in value.items()}
        return (0.1 * rng.standard_normal(value.shape)).astype(np.float32)

    # One generator: the memory's stacked weights come first, the order of all others is their own.
    memory, drawn = dict(params.get("memory", {})), {}
    if "layers" in memory:
        drawn["layers"] = draw(memory.pop("layers"))
    params = {name: draw(memory if name == "memory" else part) for name, part in params.items()}
    if "memory" in params:
        params["memory"] |= drawn
    for norm in (*params["backbone"].values(), *params["backbone"]["blocks"].values()):
        if isinstance(norm, dict) and "scale" in norm:
            norm["scale"] += 1
    return graph, params


def text(batch=2, segments=4, seed=0):
    """Tokens i32[B, S, L] and a mask with a ragged last segment in the first text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (batch, segments, LENGTH)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[0, -1, LENGTH - 3 :] = False
    return tokens, mask


def prompt(batch=2, seed=1) -> Prompt:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (batch, WORDS)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[0, -1] = False
    return Prompt(tokens, mask, np.arange(batch, dtype=np.int32) % 2)


def batch(segments=4, answered=1, seed=0, texts=2) -> Batch:
    tokens, mask = text(texts, segments, seed)
    told = prompt(texts)
    rng = np.random.default_rng(seed + 1)
    answers = (texts, answered, 1, 2)
    return Batch(
        tokens, mask, told.tokens, told.mask, told.task,
        answer_start=np.full(answers[:3], 2, np.int32),
        answer=rng.integers(0, VOCAB, answers).astype(np.int32),
        weight=np.ones(answers, np.float32),
        metric_row=np.zeros(answers[:3], np.int32),
    )  # fmt: skip
