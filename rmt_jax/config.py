"""The experiment as one typed tree, its validation, and nothing else.

Files in `configs/` import this module alone. Every field can be set from the command line as
`--config.section.field=value` (`rmt_jax.command` is that doorway).
"""

import dataclasses
from dataclasses import dataclass, field

CELLS = ("rmt", "prmt", "armt", "none")
POSITIONS = ("learned", "alibi", "rotary")
PROMPT_SOURCES = ("none", "question", "description", "both", "learned")
PROMPT_PLACES = ("start", "every")


class ConfigError(ValueError):
    """A setting that cannot work; the message is a sentence for the user."""


@dataclass(frozen=True)
class Model:
    cell: str = "rmt"  # rmt | prmt | armt | none (the plain backbone, a baseline)
    layers: int = 12
    width: int = 768
    heads: int = 12
    positions: str = "learned"  # learned (GPT-2) | alibi | rotary
    max_positions: int = 1024  # rows of the learned position table
    conv_width: int = 0  # causal depthwise convolution on the attention input; 0 is GPT-2
    segment_tokens: int = 512  # L
    memory_tokens: int = 16  # M
    position_layout: str = "plain"  # plain | wrap_pos (SPEC: the table grows by the memory's rows)
    d_mem: int = 64  # ARMT: width of keys before the DPFP feature map
    nu: int = 3  # ARMT: DPFP order; K = 2 * nu * d_mem
    bptt: int = 0  # segments that gradients flow back through; 0: all
    remat: bool = True  # rematerialise each segment in the backward pass
    scan_layers: bool = True  # layers as one compiled loop (fast to compile) or unrolled
    dtype: str = "auto"  # compute: auto (bfloat16 on accelerators) | float32 | bfloat16


@dataclass(frozen=True)
class Prompt:
    source: str = "description"  # none | question | description | both | learned
    place: str = "every"  # start (first segment only) | every
    tokens: int = 24  # P: room for the prompt


@dataclass(frozen=True)
class Data:
    tasks: tuple[str, ...] = ("qa1", "qa2", "qa3", "qa4", "qa5")
    weights: tuple[float, ...] = ()  # mixture weights, one a task; empty: equal
    facts: str = "simulated"  # simulated | official
    babi_dir: str = ""  # official bAbI text files (facts=official)
    background: str = "builtin"  # builtin | none | a folder of .txt files
    tokenizer: str = "builtin"  # builtin | a name on the hub | a folder
    seed: int = 0
    workers: int = 0  # Grain worker processes; 0: threads of this one
    align: str = "left"  # left (the authors') | right: where a ragged segment is padded


@dataclass(frozen=True)
class Curriculum:
    """Stages, one entry of each tuple a stage. A stage trains on texts of 1 to `segments` segments
    (one length a batch, so that few shapes are compiled)."""

    segments: tuple[int, ...] = (1, 2, 4, 6, 8, 16, 32)
    steps: tuple[int, ...] = (15000, 10000, 10000, 10000, 10000, 10000, 10000)
    batch: tuple[int, ...] = (64, 64, 64, 64, 64, 64, 64)
    learning_rate: tuple[float, ...] = (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5)
    background: tuple[float, ...] = (1.0,)  # probability that a sample is hidden in background text
    questions: tuple[float, ...] = (0.0,)  # auxiliary questions per fact inside the text (dense
    # supervision); 0: one question at the end only


@dataclass(frozen=True)
class Optimizer:
    name: str = "adamw"  # adamw | muon (matrices; Adam for the rest)
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    clip: float = 1.0
    warmup: float = 0.1  # fraction of a stage's steps
    decay: str = "linear"  # linear | cosine | constant
    adam_learning_rate: float = 0.0  # muon: rate of what is not a matrix; 0: same as the stage's
    accumulate: int = 1  # microbatches a step


@dataclass(frozen=True)
class Mesh:
    data: int = -1  # -1: whatever devices are left
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Checkpoint:
    every: int = 500  # steps
    keep: int = 2


@dataclass(frozen=True)
class Evaluation:
    lengths: tuple[str, ...] = ("1s", "2s", "4s")  # "4s": 4 segments; "4k": BABILong's; "0k": facts only
    samples: int = 100  # questions a task and length
    batch: int = 50
    every: int = 0  # steps between validations during training; 0: at the end of a stage
    seed: int = 1


@dataclass(frozen=True)
class Config:
    model: Model = field(default_factory=Model)
    prompt: Prompt = field(default_factory=Prompt)
    data: Data = field(default_factory=Data)
    curriculum: Curriculum = field(default_factory=Curriculum)
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluation: Evaluation = field(default_factory=Evaluation)
    init: str = ""  # weights to start from: a folder, a hub name, "backbone" (shipped); empty: random
    seed: int = 0
    log_every: int = 10

    def replace(self, **sections) -> "Config":
        return dataclasses.replace(self, **sections)
