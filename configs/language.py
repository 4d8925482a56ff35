"""A small language model from scratch on a folder of texts, with a memory over segments.

    python -m rmt_jax.train --config configs/language.py --config.data.texts.novels.train=BOOKS
    python -m rmt_jax.train --config configs/language.py:rmt --config.data.texts.novels.train=BOOKS
    python -m rmt_jax.train --config configs/language.py:smoke     no data, under a minute

Presets: `delta` (the default), `rmt`, `armt`, `prmt` and `none` (no memory) are other memories of
the same model; `mixed` learns the language, then bAbI's first two tasks beside it. BOOKS is a
folder of .txt or .jsonl files, or one such file. Segments are short, so that the memory has
something to give: a token sees at most 32 tokens by attention, all else comes out of the memory.
What came out is in docs/howto/language.md.
"""

import dataclasses
import functools

from rmt_jax.config import (
    OFFICIAL,
    Checkpoint,
    Config,
    ConfigError,
    Data,
    Evaluation,
    Facts,
    Model,
    Optimizer,
    Prompt,
    Stage,
    Texts,
)

CELLS = ("delta", "rmt", "armt", "prmt", "none")


def get_config(preset: str = "delta") -> Config:
    presets = {name: functools.partial(language, name) for name in CELLS}
    presets |= {"mixed": mixed, "smoke": smoke}
    if preset not in presets:
        raise ConfigError(
            f"configs/language.py has no preset '{preset}': choose {', '.join(presets)}."
        )
    return presets[preset]()


def language(cell: str) -> Config:
    return Config(
        model=Model(
            cell=cell,
            layers=4,
            width=64,
            heads=4,
            positions="alibi",
            conv_width=4,
            segment_tokens=32,
            memory_tokens=8,
            d_mem=64 if cell == "delta" else 16,
            scan_layers=False,
            remat=False,
        ),
        prompt=Prompt(source="description", place="every", tokens=8),
        data=Data(tasks=("novels",), texts={"novels": Texts()}),
        optimizer=Optimizer(
            name="muon",
            # Of embeddings above all: with a third of it the loss is 0.3 nats higher for long.
            adam_learning_rate=8e-3,
            b2=0.99,
            conv_lr_multiplier=8.0,
            weight_decay=0.05,
            warmup=0.05,
            decay="linear",
        ),
        stages=(
            Stage(segments=16, steps=1200, batch=16, learning_rate=0.01),
            # Without it a memory of 64 segments and more does harm: it was never that full.
            Stage(segments=64, steps=300, batch=4, learning_rate=0.003),
        ),
        evaluation=Evaluation(lengths=("128s",), samples=16, batch=16),
        checkpoint=Checkpoint(every=100),
        log_every=20,
    )


def mixed() -> Config:
    """Language first, then answers beside it. From the backbone that has learned to answer from a
    text: from nothing, so short a run learns no task. Then a text in four is a passage, and has a
    quarter of the loss."""
    config = language("delta")
    stage = Stage(
        segments=8,
        steps=500,
        batch=16,
        learning_rate=0.008,
        tasks={"qa1": 0.0, "qa2": 0.0, "novels": 1.0},
        facts=(Facts(3, 12), Facts(3, 12), OFFICIAL),
        background=0.5,
        question_rates=(1.0, 1.0, 0.5, 0.2),
    )
    both = {"qa1": 1.0, "qa2": 2.0, "novels": 1.0}
    return config.replace(
        init="backbone",
        model=dataclasses.replace(config.model, segment_tokens=64, conv_width=6, remat=True),
        prompt=dataclasses.replace(config.prompt, tokens=12),
        data=dataclasses.replace(config.data, tasks=("qa1", "qa2", "novels"), align="sentence"),
        optimizer=dataclasses.replace(config.optimizer, adam_learning_rate=4e-3),
        stages=(
            stage,
            dataclasses.replace(
                stage, segments=4, steps=400, batch=32, learning_rate=0.005, tasks=both
            ),
        ),
        evaluation=Evaluation(lengths=("1s", "2s", "4s"), samples=100, batch=100),
    )


def smoke() -> Config:
    """Everything that `delta` does, on the built-in text and a model too small to learn."""
    config = language("delta")
    return config.replace(
        model=dataclasses.replace(config.model, layers=1, width=32, heads=2, d_mem=16),
        data=dataclasses.replace(config.data, texts={"novels": Texts(train="builtin")}),
        stages=(Stage(segments=4, steps=20, batch=8, learning_rate=0.01),),
        evaluation=Evaluation(lengths=("8s",), samples=8, batch=8),
        checkpoint=Checkpoint(every=10),
        log_every=5,
    )
