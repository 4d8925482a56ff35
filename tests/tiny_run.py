"""A run's folder with a tiny random model in it: what evaluation and `ask` are tested on."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rmt_jax import api, models
from rmt_jax import config as settings
from rmt_jax.data import tokenizer
from rmt_jax.models.io import weights

LENGTH = 48


def config(cell="rmt", source="description", **prompt) -> settings.Config:
    return settings.Config(
        model=settings.Model(
            cell=cell, layers=1, width=16, heads=2, positions="alibi", segment_tokens=LENGTH,
            memory_tokens=2, d_mem=4, dtype="float32",
        ),
        prompt=settings.Prompt(**({"source": source, "tokens": 24} | prompt)),
        data=settings.Data(tasks=("qa1", "qa5")),
        stages=tuple(settings.Stage(n, 1, 2, 1e-5) for n in (1, 2)),
        evaluation=settings.Evaluation(lengths=("1s", "3s"), samples=5, batch=4),
    )  # fmt: skip


@functools.cache
def words():
    return tokenizer.load("builtin")


def save(folder: Path, config: settings.Config) -> Path:
    """Random weights, large enough that answers depend on the text."""
    built = models.build(
        config.model, config.prompt, words().vocab_size, len(config.data.tasks), nnx.Rngs(0)
    )
    params = jax.tree.map(
        lambda x: np.asarray(x) * (8 if x.ndim > 1 else 1), models.split(built)[1]
    )
    folder.mkdir(parents=True, exist_ok=True)
    weights.save(folder, params)
    words().save(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(settings.to_dict(config)))
    return folder


def model(folder: Path, cell="rmt", source="description", **prompt) -> api.Model:
    return api.load(save(folder, config(cell, source, **prompt)))
