"""Associative recall: how many pairs does a memory hold? (ARMT, arXiv 2407.04841; docs/suites.md)

    python -m rmt_jax.train --config configs/recall.py:delta --workdir runs/delta
    python -m rmt_jax.train --config configs/recall.py:armt --workdir runs/armt
    python -m rmt_jax.train --config configs/recall.py:prmt --workdir runs/prmt
    python -m rmt_jax.train --config configs/recall.py:rmt --workdir runs/rmt
    python -m rmt_jax.report runs/delta runs/armt runs/prmt runs/rmt --capacity --out runs/capacity

A preset is a memory cell; --config.model.memory_tokens and --config.model.d_mem are the sizes of
its memory. The model is tiny and starts from random weights: few pairs first, asked after most of
them, then more segments.
"""

import dataclasses

from rmt_jax.config import (
    Checkpoint,
    Config,
    ConfigError,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Prompt,
    Stage,
)

CELLS = ("delta", "armt", "prmt", "rmt")
MODEL = Model(
    cell="none",
    layers=2,
    width=64,
    heads=4,
    positions="alibi",
    conv_width=4,
    segment_tokens=32,
    memory_tokens=8,
    d_mem=32,
    scan_layers=False,
    remat=False,
    dtype="float32",
)


def get_config(preset: str = "delta") -> Config:
    if preset == "segment":
        return segment()
    if preset not in CELLS:
        raise ConfigError(
            f"configs/recall.py has no preset '{preset}': choose segment, {', '.join(CELLS)}."
        )
    return cell(preset)


def segment() -> Config:
    """First, without a memory: keys and values of one segment."""
    return Config(
        model=MODEL,
        prompt=Prompt(source="none"),
        data=Data(
            tasks=("recall",),
            background="none",
            # A pair takes four tokens.
            task_options={"recall": {"key_size": 1, "key_symbols": 1024, "value_symbols": 16}},
        ),
        optimizer=Optimizer(
            name="muon",
            adam_learning_rate=1e-2,
            b2=0.99,
            conv_lr_multiplier=8.0,
            weight_decay=0.1,
            warmup=0.05,
            decay="linear",
        ),
        stages=(stage(1, 600, 0.02, (1.0, 0.3)),),
        evaluation=Evaluation(lengths=("1s", "2s"), samples=200, batch=100),
        checkpoint=Checkpoint(every=500),
        log_every=20,
    )


def cell(name: str) -> Config:
    """Then with a memory, over more and more segments."""
    config = segment()
    return config.replace(
        init="runs/segment",
        model=dataclasses.replace(MODEL, cell=name),
        stages=(
            stage(2, 400, 0.02, (1.0, 0.5)),
            stage(4, 400, 0.015, (0.5, 0.2)),
            stage(8, 400, 0.01, (0.2, 0.0)),
        ),
        evaluation=Evaluation(
            lengths=("1s", "2s", "4s", "8s", "16s", "32s", "64s", "128s"), samples=400, batch=100
        ),
    )


def stage(
    segments: int, steps: int, learning_rate: float, question_rates: tuple[float, ...]
) -> Stage:
    return Stage(
        segments=segments,
        steps=steps,
        batch=32,
        learning_rate=learning_rate,
        question_rates=question_rates,
    )
