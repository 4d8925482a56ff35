"""One recurrent memory transformer on QA1-QA5 at once, told its task by a description.

python -m rmt_jax.train --config configs/multitask.py          (`small`)
python -m rmt_jax.train --config configs/multitask.py:smoke    the whole way in under a minute
python -m rmt_jax.train --config configs/multitask.py:gpt2     the paper's model
"""

from rmt_jax.config import (
    Checkpoint,
    Config,
    ConfigError,
    Curriculum,
    Data,
    Evaluation,
    Model,
    Optimizer,
    Prompt,
)


def get_config(preset: str = "small") -> Config:
    presets = {"small": small, "gpt2": gpt2, "smoke": smoke}
    if preset not in presets:
        raise ConfigError(
            f"configs/multitask.py has no preset '{preset}': choose {', '.join(presets)}."
        )
    return presets[preset]()


def small() -> Config:
    return Config(
        model=Model(
            cell="rmt",
            layers=4,
            width=128,
            heads=4,
            positions="alibi",
            conv_width=6,
            segment_tokens=256,
            memory_tokens=16,
            scan_layers=False,
        ),
        prompt=Prompt(source="description", place="every", tokens=16),
        optimizer=Optimizer(name="muon", adam_learning_rate=2e-3, b2=0.98, weight_decay=0.0),
        curriculum=Curriculum(
            segments=(1, 2, 4),
            steps=(300, 200, 200),
            batch=(32,),
            learning_rate=(1e-2,),
            background=(0.5, 0.8, 1.0),
            questions=("1 .5 .2",),
        ),
        evaluation=Evaluation(lengths=("1s", "2s", "4s", "8s", "16s"), samples=100),
    )


def smoke() -> Config:
    config = small()
    return config.replace(
        model=Model(
            cell="rmt",
            layers=2,
            width=32,
            heads=2,
            positions="alibi",
            conv_width=4,
            segment_tokens=64,
            memory_tokens=4,
        ),
        curriculum=Curriculum(
            segments=(1, 2),
            steps=(20, 10),
            batch=(16,),
            learning_rate=(1e-2,),
            background=(0.5, 1.0),
            questions=("1 .5 .2",),
        ),
        evaluation=Evaluation(lengths=("1s", "2s", "4s"), samples=10, batch=10),
        checkpoint=Checkpoint(every=10),
        log_every=5,
    )


def gpt2() -> Config:
    """The paper's recipe: GPT-2 small's shape (give its weights with --config.init=gpt2 or a
    folder), segments of 512, 16 memory tokens, stages of 1 to 32 segments, one question at the
    end of a text."""
    return Config(
        model=Model(),
        prompt=Prompt(source="both", place="every", tokens=48),
        data=Data(tokenizer="gpt2"),
        optimizer=Optimizer(),
        curriculum=Curriculum(),
        evaluation=Evaluation(
            lengths=("0k", "1k", "2k", "4k", "8k", "16k", "32k"), samples=1000, batch=32
        ),
    )
