"""One recurrent memory transformer on several bAbI tasks at once, told its task by a description.

    python -m rmt_jax.train --config configs/multitask.py          (`small`, minutes on two cores)
    python -m rmt_jax.train --config configs/multitask.py:smoke    the whole way in under a minute
    python -m rmt_jax.train --config configs/multitask.py:gpt2     the paper's model
    python -m rmt_jax.train --config configs/multitask.py:gpt2-tpu   the same, with segments that
                                fill a TPU's tiles
    python -m rmt_jax.train --config configs/multitask.py:long     novels, half an hour on a core
    python -m rmt_jax.train --config configs/multitask.py:five     QA1 to QA5 alone
    python -m rmt_jax.train --config configs/multitask.py:rmt      the paper's memory tokens
    python -m rmt_jax.train --config configs/multitask.py:rmt-long   in novels, four hours (then
                                rmt-more and rmt-deeper, from the run before)
    python -m rmt_jax.train --config configs/multitask.py:armt     (prmt, none) other memory
    python -m rmt_jax.train --config configs/multitask.py:pretrained  SmolLM2-135M, or what
                                --config.init=NAME says (also pretrained-rmt, pretrained-lora,
                                pretrained-none, -short and -long: attention alone, one after
                                another; and pretrained-tpu for four chips that share the weights,
                                or eight, and so on)

`small` starts from the backbone that ships with the package (made by configs/pretrain.py);
--config.init= (empty) starts from nothing.
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
    Lora,
    Mesh,
    Model,
    Optimizer,
    Prompt,
    Stage,
)

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
TEN = (*TASKS, "qa6", "qa7", "qa8", "qa9", "qa10")
TEN_WEIGHTS = (0.4, 0.8, 1.8, 0.7, 0.6, 0.5, 0.8, 0.8, 0.5, 1.8)
OFTEN = (1.0, 1.0, 0.5, 0.2)  # most stories are asked after every fact
SHORT, LONG = Facts(3, 12), Facts(8, 24)


def get_config(preset: str = "small") -> Config:
    presets = {"small": small, "five": five, "rmt": rmt, "long": long, "gpt2": gpt2, "smoke": smoke}
    presets |= {"pretrained": pretrained, "pretrained-rmt": functools.partial(pretrained, "rmt")}
    presets |= {"pretrained-lora": functools.partial(pretrained, train="lora")}
    presets |= {"pretrained-none": pretrained_none, "pretrained-short": pretrained_short}
    presets |= {"pretrained-long": pretrained_long}
    presets |= {"rmt-long": rmt_long, "rmt-more": rmt_more, "rmt-deeper": rmt_deeper}
    presets |= {"gpt2-tpu": lambda: filling(gpt2(), 512)}
    presets |= {"pretrained-tpu": lambda: filling(pretrained(), 256).replace(mesh=Mesh(fsdp=4))}
    presets |= {name: functools.partial(cell, name) for name in ("armt", "prmt", "none")}
    if preset not in presets:
        raise ConfigError(
            f"configs/multitask.py has no preset '{preset}': choose {', '.join(presets)}."
        )
    return presets[preset]()


def small() -> Config:
    """Ten tasks, minutes on a laptop: the delta memory, from a backbone half way there."""
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
        init="backbone-ten",
        prompt=Prompt(source="description", place="every", tokens=24),
        data=Data(tasks=TEN, align="sentence"),
        optimizer=Optimizer(
            name="muon",
            adam_learning_rate=1.5e-3,
            b2=0.99,
            conv_lr_multiplier=8.0,
            weight_decay=0.2,
            warmup=0.05,
            decay="linear",
            # Four texts a core, rematerialised, stay in its cache.
            accumulate=4,
        ),
        stages=(
            Stage(
                segments=8,
                steps=520,
                batch=32,
                learning_rate=0.006,
                tasks=dict(zip(TEN, TEN_WEIGHTS, strict=True)),
                facts=(SHORT, LONG, OFFICIAL, OFFICIAL),
                background=0.5,
                question_rates=OFTEN,
            ),
        ),
        # BABILong's rule can count no 'none' of QA7 as right: 'one' stands in it.
        evaluation=Evaluation(
            lengths=("1s", "2s", "4s", "8s", "16s"), samples=200, batch=100, score="exact"
        ),
        checkpoint=Checkpoint(every=100),
        log_every=10,
    )


def five() -> Config:
    """The five tasks that most of the literature reports, from a backbone that knows them alone."""
    config = small()
    tasks = {"qa1": 0.9, "qa2": 1.7, "qa3": 1.7, "qa4": 0.6, "qa5": 1.0}
    return config.replace(
        init="backbone",
        prompt=dataclasses.replace(config.prompt, tokens=12),
        data=dataclasses.replace(config.data, tasks=TASKS),
        stages=(dataclasses.replace(config.stages[0], steps=400, tasks=tasks),),
        evaluation=dataclasses.replace(config.evaluation, score=""),
    )


def rmt() -> Config:
    """The paper's memory, from the backbone that learned it, 25 minutes of one CPU core. Every
    segment writes all memory tokens anew, so most of what there is to learn is to leave in them
    what other text does not concern: a drift costs."""
    config = five()
    return config.replace(
        model=dataclasses.replace(config.model, cell="rmt", memory_tokens=12, d_mem=16),
        init="backbone-rmt",
        optimizer=dataclasses.replace(
            config.optimizer, adam_learning_rate=5e-4, memory_drift_penalty=0.5
        ),
        stages=(dataclasses.replace(config.stages[0], steps=700, learning_rate=0.003),),
    )


def cell(name: str) -> Config:
    """Minutes as well, with another memory of the literature: parallel RMT, ARMT's associations, or
    none. From the backbone that learned memory tokens; what it lacks starts as drawn."""
    config = five()
    stage = Stage(
        segments=4,
        steps=250,
        batch=32,
        learning_rate=0.002,
        tasks={"qa1": 0.8, "qa2": 1.7, "qa3": 1.5, "qa4": 1.5, "qa5": 1.0},
        background=0.9,
        question_rates=(1.0, 0.5, 0.2, 0.0),
    )
    longer = dataclasses.replace(stage, segments=8, steps=150, learning_rate=0.0015)
    return config.replace(
        model=dataclasses.replace(config.model, cell=name, memory_tokens=12, d_mem=16),
        init="backbone-rmt",
        data=Data(tasks=TASKS),
        optimizer=dataclasses.replace(config.optimizer, adam_learning_rate=5e-4),
        stages=(stage, longer),
    )


def long() -> Config:
    """Official stories too, in up to 2,048 tokens of novels: what making `multitask` taught, in one
    run from `backbone`. Give --config.data.babi_dir and --config.data.background. 23 million
    tokens, 25 minutes of one CPU core; then `python -m rmt_jax.gating --threshold 0.2`, for texts
    that are longer still. Three seeds of both: docs/RESULTS.md."""
    config = five()
    return config.replace(
        data=Data(
            tasks=TASKS,
            align="sentence",
            facts="both",
            babi_dir="tasks_1-20_v1-2/en-10k",
            hard_negative_rate=0.6,
        ),
        optimizer=dataclasses.replace(config.optimizer, accumulate=8, memory_drift_penalty=0.5),
        stages=(
            Stage(
                segments=8,
                steps=900,
                batch=32,
                learning_rate=0.006,
                tasks={"qa1": 0.9, "qa2": 1.7, "qa3": 1.7, "qa4": 0.8, "qa5": 1.0},
                facts=(SHORT, LONG, OFFICIAL, OFFICIAL),
                background=0.5,
                question_rates=OFTEN,
            ),
            Stage(
                segments=32,
                steps=720,
                batch=32,
                learning_rate=0.005,
                tasks={"qa1": 0.5, "qa2": 1.6, "qa3": 2.4, "qa4": 0.6, "qa5": 1.0},
                facts=(SHORT, LONG, OFFICIAL, OFFICIAL, OFFICIAL),
                background=0.7,
                question_rates=OFTEN,
            ),
        ),
        evaluation=Evaluation(lengths=("0k", "1k", "4k"), samples=100, batch=50),
    )


def rmt_long() -> Config:
    """`long` with memory tokens: up to 16 segments of 256, 120 million tokens, nearly four hours of
    one CPU core. The checkpoint `multitask-rmt` began with these stages, a run each."""
    config, base = long(), rmt()
    few = dataclasses.replace(
        config.stages[0],
        segments=2,
        steps=220,
        batch=16,
        tasks={"qa1": 0.8, "qa2": 1.7, "qa3": 2.0, "qa4": 0.8, "qa5": 1.0},
    )
    eight = dataclasses.replace(
        few,
        segments=8,
        steps=600,
        learning_rate=0.005,
        facts=config.stages[1].facts,
        background=0.7,
    )
    more = {"qa1": 0.9, "qa2": 1.6, "qa3": 2.0, "qa4": 1.0, "qa5": 1.0}
    most = {"qa1": 0.6, "qa2": 1.7, "qa3": 2.0, "qa4": 1.6, "qa5": 1.0}
    return config.replace(
        model=dataclasses.replace(base.model, segment_tokens=256),
        init=base.init,
        data=dataclasses.replace(config.data, hard_negative_rate=0.4),
        optimizer=dataclasses.replace(base.optimizer, accumulate=8),
        stages=(
            few,
            dataclasses.replace(few, segments=4, steps=400, background=0.6),
            eight,
            dataclasses.replace(eight, steps=950, batch=32, tasks=more),
            dataclasses.replace(
                eight, segments=16, steps=1450, batch=32, tasks=most, background=0.75
            ),
        ),
    )


def rmt_more() -> Config:
    """After `rmt_long` (runs/rmt): 32 memory tokens, 33 million tokens, 48 minutes of one CPU core.
    Two seeds of the data, whose mean goes on: `python -m rmt_jax.convert mean`."""
    config = rmt_long()
    tasks = {"qa1": 0.6, "qa2": 1.8, "qa3": 2.4, "qa4": 1.4, "qa5": 1.0}
    return config.replace(
        model=dataclasses.replace(config.model, memory_tokens=32),
        init="runs/rmt",
        stages=(dataclasses.replace(config.stages[-1], steps=640, tasks=tasks),),
    )


def rmt_deeper() -> Config:
    """After `rmt_more`: the mean with six layers (`python -m rmt_jax.convert deepen --layers 6`),
    as runs/deeper, 24 million tokens, 45 minutes. The mean of it and of two seeds of the data goes
    on with eight layers, which makes the checkpoint `multitask-rmt`: docs/RESULTS.md."""
    config = rmt_more()
    tasks = {"qa1": 0.5, "qa2": 1.8, "qa3": 2.4, "qa4": 1.1, "qa5": 1.3}
    return config.replace(
        model=dataclasses.replace(config.model, layers=6),
        init="runs/deeper",
        stages=(dataclasses.replace(config.stages[-1], steps=480, tasks=tasks),),
    )


def smoke() -> Config:
    """Everything that `five` does, on a model too small to learn."""
    config = five()
    stage = Stage(
        segments=1,
        steps=20,
        batch=16,
        learning_rate=1e-2,
        background=0.5,
        question_rates=(1.0, 0.5, 0.2),
    )
    return config.replace(
        init="",
        model=dataclasses.replace(
            config.model, layers=1, width=32, heads=2, conv_width=3, d_mem=16
        ),
        optimizer=dataclasses.replace(config.optimizer, accumulate=1),
        stages=(stage, dataclasses.replace(stage, segments=2, steps=10, background=1.0)),
        evaluation=Evaluation(lengths=("1s", "2s", "4s"), samples=10, batch=10),
        checkpoint=Checkpoint(every=10),
        log_every=5,
    )


def gpt2() -> Config:
    """The paper's recipe: GPT-2 small's shape (give its weights with --config.init=gpt2 or a
    folder), segments of 512, 16 memory tokens, stages of 1 to 32 segments, one question at the
    end of a text."""
    return Config(
        model=Model(cell="rmt"),
        prompt=Prompt(source="both", place="every", tokens=48),
        data=Data(tasks=TASKS, tokenizer="gpt2"),
        optimizer=Optimizer(),
        evaluation=Evaluation(
            lengths=("0k", "1k", "2k", "4k", "8k", "16k", "32k"), samples=1000, batch=32
        ),
    )


def filling(config: Config, places: int) -> Config:
    """Shorter segments, that fill `places` with prompt and memory: a TPU pads places to a multiple
    of 128. Weights are the same."""
    memory = 2 * config.model.memory_tokens if config.model.cell == "rmt" else 0
    tokens = places - memory - config.prompt.tokens
    return config.replace(model=dataclasses.replace(config.model, segment_tokens=tokens))


def pretrained(cell: str = "delta", train: str = "all") -> Config:
    """A pretrained model with a memory: the delta memory, which starts as exactly the model itself,
    or memory tokens (`pretrained-rmt`), all weights or adapters alone (`pretrained-lora`). The
    model is SmolLM2-135M-Instruct, or what --config.init=NAME says: another one of
    docs/howto/pretrained.md on the hub, a folder, a GGUF file, a run. For official stories and real
    books: --config.data.facts=both --config.data.babi_dir=DIR --config.data.background=DIR.
    """
    # Adapters are few and their products begin at zero: they take several times the weights' rate.
    rate = 5e-4 if train == "lora" else 1e-4
    stage = Stage(
        segments=2,
        steps=150,
        batch=8,
        learning_rate=rate,
        facts=(SHORT, LONG, OFFICIAL, OFFICIAL),
        background=0.5,
        question_rates=OFTEN,
    )
    longer = dataclasses.replace(stage, segments=8, background=0.9)
    longest = dataclasses.replace(longer, segments=16, steps=100, learning_rate=rate / 2)
    return Config(
        # A CPU reads short segments faster: attention is quadratic in them.
        model=Model(backbone="init", cell=cell, segment_tokens=256),
        init="HuggingFaceTB/SmolLM2-135M-Instruct",
        prompt=Prompt(source="description", place="every", tokens=16),
        data=Data(tasks=TASKS, tokenizer="init", align="sentence" if cell == "delta" else "left"),
        optimizer=Optimizer(train=train, accumulate=4),
        lora=Lora(rank=16, alpha=32.0),
        stages=(stage, longer, longest),
        evaluation=Evaluation(lengths=("0k", "1k", "2k", "4k"), samples=100, batch=10),
        checkpoint=Checkpoint(every=50),
    )


def pretrained_none() -> Config:
    """A pretrained model without a memory, whose attention sees a whole story: what a memory is to
    be compared with. Forty minutes of one CPU core."""
    config = pretrained("none")
    stage = dataclasses.replace(
        config.stages[0],
        segments=1,
        steps=160,
        tasks={"qa1": 0.6, "qa2": 1.2, "qa3": 1.6, "qa4": 0.8, "qa5": 1.0},
        background=0.3,
    )
    return config.replace(
        # Nothing is recomputed: two texts of one segment fit a laptop's memory.
        model=dataclasses.replace(config.model, segment_tokens=192, remat=False),
        stages=(stage,),
        evaluation=dataclasses.replace(config.evaluation, lengths=("1s", "0k")),
    )


def pretrained_short() -> Config:
    """After `pretrained_none` (runs/none): many short stories in a step, 20 minutes of one core.
    A story of QA4 has two facts and one question, and would leave long segments empty."""
    config = pretrained_none()
    tasks = {"qa1": 0.6, "qa2": 1.0, "qa3": 0.8, "qa4": 2.2, "qa5": 0.6}
    few = (Facts(2, 6), OFFICIAL)
    stage = dataclasses.replace(
        config.stages[0], steps=70, batch=32, tasks=tasks, facts=few, background=0.2
    )
    return config.replace(
        model=dataclasses.replace(config.model, segment_tokens=48),
        init="runs/none",
        optimizer=dataclasses.replace(config.optimizer, decay="constant"),
        stages=(stage,),
        evaluation=dataclasses.replace(config.evaluation, lengths=("1s",)),
    )


def pretrained_long() -> Config:
    """After `pretrained_short` (runs/short): stories of up to 320 tokens, 40 minutes of one core.
    Two seeds of the data, whose mean goes on: `python -m rmt_jax.convert mean`."""
    config = pretrained_none()
    tasks = {"qa1": 0.3, "qa2": 1.2, "qa3": 2.4, "qa4": 0.3, "qa5": 1.0}
    stage = dataclasses.replace(config.stages[0], steps=100, batch=6, tasks=tasks, background=0.4)
    return config.replace(
        model=dataclasses.replace(config.model, segment_tokens=320),
        init="runs/short",
        optimizer=dataclasses.replace(config.optimizer, accumulate=3, warmup=0.05),
        stages=(stage,),
    )
