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

CELLS = ("delta", "armt", "prmt", "rmt", "none")


def get_config(preset: str = "delta") -> Config:
    if preset not in CELLS:
        raise ConfigError(f"configs/recall.py has no preset '{preset}': choose {', '.join(CELLS)}.")
    return Config(
        model=Model(
            cell=preset,
            layers=2,
            width=64,
            heads=1,
            positions="alibi",
            conv_width=4,
            segment_tokens=32,
            memory_tokens=8,
            d_mem=32,
            scan_layers=False,
            remat=False,
            dtype="float32",
        ),
        prompt=Prompt(source="none"),
        data=Data(
            tasks=("recall",),
            background="none",
            # A pair is four tokens, and a segment holds eight.
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
        stages=(
            stage(1, 300, (1.0,)),
            stage(2, 250, (1.0, 0.5)),
            stage(4, 250, (0.5, 0.2)),
            stage(8, 200, (0.2, 0.0)),
        ),
        evaluation=Evaluation(
            lengths=("1s", "2s", "4s", "8s", "16s", "32s", "64s", "128s"), samples=400, batch=100
        ),
        checkpoint=Checkpoint(every=500),
        log_every=20,
    )


def stage(segments: int, steps: int, question_rates: tuple[float, ...]) -> Stage:
    return Stage(
        segments=segments,
        steps=steps,
        batch=64,
        learning_rate=0.02,
        question_rates=question_rates,
    )
