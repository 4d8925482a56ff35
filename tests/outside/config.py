"""A config that names a backbone, a memory cell and a task from outside the package."""

from rmt_jax.config import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Mesh,
    Model,
    Optimizer,
    Prompt,
    Stage,
)


def get_config(preset: str = "toys") -> Config:
    return Config(
        imports=("toy_backbone", "toy_cell", "toy_task"),
        model=Model(
            backbone="averaging",
            cell="average",
            layers=2,
            width=32,
            segment_tokens=48,
            memory_tokens=4,
            dtype="float32",
            backbone_options={"sharpness": 3.0},
            cell_options={"keep": 0.25},
        ),
        prompt=Prompt(source="description", place="every", tokens=16),
        data=Data(tasks=("echo",)),
        optimizer=Optimizer(name="muon", adam_learning_rate=3e-3, weight_decay=0.0),
        stages=(Stage(segments=2, steps=6, batch=16, learning_rate=1e-2, background=0.5),),
        mesh=Mesh(),
        checkpoint=Checkpoint(every=3),
        evaluation=Evaluation(lengths=("1s", "2s"), samples=6, batch=6),
        log_every=2,
    )
