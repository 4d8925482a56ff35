"""A task of your own: which team a customer's message is for, from 200 rows beside this file.

    python -m rmt_jax.train --config configs/tickets.py --workdir runs/tickets

Copy this file and put your rows in their place (docs/howto/own_data.md).
"""

from pathlib import Path

from rmt_jax.config import (
    Checkpoint,
    Config,
    ConfigError,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Prompt,
    Questions,
    Stage,
)


def get_config(preset: str = "") -> Config:
    if preset:
        raise ConfigError(f"configs/tickets.py has no preset '{preset}', nor any: leave it out.")
    tickets = Questions(
        train=str(Path(__file__).with_name("tickets.jsonl")),
        description="Say which team has to act.",
        fields={"context": "ticket", "answer": "team"},
        question="Which team?",
        labels=("billing", "delivery", "returns", "technical"),
    )
    return Config(
        model=Model(
            cell="delta",
            layers=4,
            width=64,
            heads=4,
            positions="alibi",
            conv_width=6,
            segment_tokens=64,
            d_mem=64,
            scan_layers=False,
        ),
        init="backbone",
        prompt=Prompt(source="description", tokens=12),
        data=Data(
            tasks=("tickets",), questions={"tickets": tickets}, align="sentence", background="none"
        ),
        stages=(Stage(segments=4, steps=150, batch=16, learning_rate=0.004),),
        optimizer=Optimizer(
            name="muon", adam_learning_rate=1.5e-3, b2=0.99, weight_decay=0.2, warmup=0.05
        ),
        evaluation=Evaluation(lengths=("1s", "2s", "4s", "all"), samples=100, batch=20),
        checkpoint=Checkpoint(every=50),
    )
