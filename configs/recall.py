"""Associative recall: how many pairs does a memory hold? (ARMT, arXiv 2407.04841;
docs/howto/suites.md)

    python -m rmt_jax.train --config configs/recall.py:segment --workdir runs/segment
    python -m rmt_jax.train --config configs/recall.py:delta --workdir runs/delta
    python -m rmt_jax.train --config configs/recall.py:armt --workdir runs/armt
    python -m rmt_jax.train --config configs/recall.py:prmt --workdir runs/prmt
    python -m rmt_jax.train --config configs/recall.py:rmt --workdir runs/rmt
    python -m rmt_jax.report runs/delta runs/armt runs/prmt runs/rmt --capacity --out runs/capacity

Three minutes each on two cores. `segment` teaches a tiny model without a memory, from random
weights, to find a value behind its key within one segment. The other presets are memory cells,
which start from it: as in the paper a segment holds a pair or two. --config.model.memory_tokens
(rmt, prmt) and --config.model.d_mem (armt, delta) are the sizes of a memory.
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

# Memory tokens by cell: two of ARMT write the two pairs of a segment, those of RMT and PRMT are all
# that the memory is.
CELLS = {"delta": 0, "armt": 2, "prmt": 16, "rmt": 16}
MODEL = Model(
    cell="none",
    layers=2,
    width=64,
    heads=4,
    positions="alibi",
    conv_width=4,
    segment_tokens=32,
    d_mem=64,
    nu=1,
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
    """First, without a memory: eight pairs and questions about them in one segment."""
    return Config(
        model=MODEL,
        prompt=Prompt(source="none"),
        data=Data(
            tasks=("recall",),
            background="none",
            # A pair takes four tokens, and so does a question with its answer.
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
    """Then with a memory, over segments of two pairs, or of one and a question."""
    config = segment()
    return config.replace(
        init="runs/segment",
        model=dataclasses.replace(MODEL, cell=name, segment_tokens=8, memory_tokens=CELLS[name]),
        optimizer=dataclasses.replace(config.optimizer, adam_learning_rate=3e-3),
        stages=(stage(4, 700, 0.01, (1.0, 0.3)), stage(16, 400, 0.01, (1.0, 0.3, 0.0))),
        # 1, 3, 7, 15, 31, 63, 127, 255 pairs
        evaluation=Evaluation(
            lengths=("1s", "2s", "4s", "8s", "16s", "32s", "64s", "128s"), samples=300, batch=100
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
