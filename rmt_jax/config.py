"""The experiment as one typed tree, and nothing else (`rmt_jax.validation` checks it).

Files in `configs/` import this module alone. Every field can be set from the command line as
`--config.section.field=value` (`rmt_jax.command` is that doorway).
"""

import dataclasses
import difflib
from dataclasses import dataclass, field

ALIGNS = ("left", "right", "sentence")
# Memory cells, and how often their M memory tokens stand in a segment.
SIDES = {"rmt": 2, "prmt": 2, "armt": 1, "delta": 0, "none": 0}
CELLS = tuple(SIDES)
SCHEDULES = ("auto", "sequential", "diagonal")
POSITIONS = ("learned", "alibi", "rotary")
PROMPT_SOURCES = ("none", "question", "description", "both", "learned")
PROMPT_PLACES = ("start", "every")


class ConfigError(ValueError):
    """A setting that cannot work; the message is a sentence for the user."""


@dataclass(frozen=True)
class Model:
    cell: str = "rmt"  # rmt | prmt | armt | delta | none (the plain backbone, a baseline)
    layers: int = 12
    width: int = 768
    heads: int = 12
    positions: str = "learned"  # learned (GPT-2) | alibi | rotary
    max_positions: int = 1024  # rows of the learned position table
    conv_width: int = 0  # causal depthwise convolution on the attention input; 0 is GPT-2
    segment_tokens: int = 512  # L
    memory_tokens: int = 16  # M (delta and none have none)
    position_layout: str = "plain"  # plain | wrap_pos (the table grows by the memory's)
    d_mem: int = 64  # armt: width of keys before the DPFP feature map; delta: K, that of its keys
    nu: int = 3  # armt: DPFP order; K = 2 * nu * d_mem
    # delta: a gate that would open less than this stays shut; one number, or one a layer
    gate_threshold: tuple[float, ...] = ()
    bptt: int = 0  # segments that gradients flow back through; 0: all
    remat: bool = True  # rematerialise each segment in the backward pass; without it a CPU keeps
    # what products with weights made, an accelerator everything
    scan_layers: bool = True  # layers as one compiled loop (fast to compile) or unrolled
    dtype: str = "auto"  # compute: auto (bfloat16 on accelerators) | float32 | bfloat16
    attention: str = "auto"  # auto (cuDNN's kernel on NVIDIA GPUs, where it can) | xla
    schedule: str = "auto"  # auto (models/schedule.py) | sequential | diagonal (prmt, armt, delta)
    tied_head: bool = True  # logits through the embedding table; False: a head of its own


@dataclass(frozen=True)
class Prompt:
    source: str = "description"  # none | question | description | both | learned
    place: str = "every"  # start (first segment only) | every
    tokens: int = 24  # P: room for the prompt


@dataclass(frozen=True)
class Data:
    tasks: tuple[str, ...] = ("qa1", "qa2", "qa3", "qa4", "qa5")
    weights: tuple[float, ...] = ()  # mixture weights, one a task; empty: equal
    # simulated | official | both (of stories of official length, half are from the files)
    facts: str = "simulated"
    babi_dir: str = ""  # official bAbI text files (facts=official)
    new_names: float = 0.0  # probability that persons, places and objects bear new names
    background: str = "builtin"  # builtin | none | a folder of .txt files
    # Probability that only sentences with a name of the tasks hide a training sample.
    decoys: float = 0.0
    tokenizer: str = "builtin"  # builtin | a name on the hub | a folder
    seed: int = 0
    workers: int = 0  # Grain worker processes; 0: threads of this one
    # left (the authors') | right: where a ragged segment stands | sentence: segments end with one
    align: str = "left"


@dataclass(frozen=True)
class Curriculum:
    """Stages, one entry of each tuple a stage. A stage trains on texts of 1 to `segments` segments
    (one length a batch, so that few shapes are compiled)."""

    segments: tuple[int, ...] = (1, 2, 4, 6, 8, 16, 32)
    steps: tuple[int, ...] = (15000, 10000, 10000, 10000, 10000, 10000, 10000)
    batch: tuple[int, ...] = (64, 64, 64, 64, 64, 64, 64)
    learning_rate: tuple[float, ...] = (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5)
    tasks: tuple[str, ...] = ("",)  # task weights, "qa1:1 qa2:3"; "": data.weights
    facts: tuple[str, ...] = ("",)  # facts a story, "2-6"; "" or "official": as in the official
    # files; several, "2-6 official": one is drawn a sample
    background: tuple[float, ...] = (1.0,)  # probability that a sample is hidden in background text
    questions: tuple[str, ...] = ("0",)  # chance of a question after each fact (dense supervision);
    # several, "1 .5 0": one is drawn a sample. 0: one question at the end only
    probes: tuple[int, ...] = (0,)  # 1: the question is asked of the memory after every segment


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
    conv_rate: float = 1.0  # learning rate of the short convolution, times that of the rest
    accumulate: int = 1  # microbatches a step
    stillness: float = 0.0  # weight of the penalty on memory change over background


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
    lengths: tuple[str, ...] = (
        "1s",
        "2s",
        "4s",
    )  # "4s": 4 segments; "4k": BABILong's; "0k": facts only
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
    # Weights to start from: a folder, a hub name, or what ships with the package ("backbone",
    # "backbone-rmt", "multitask", "multitask-wide"); empty: random.
    init: str = ""
    seed: int = 0
    log_every: int = 10

    def replace(self, **sections) -> "Config":
        return dataclasses.replace(self, **sections)


def stage_value(values: tuple, stage: int):
    """A curriculum field's value in a stage; one entry stands for all stages."""
    return values[0] if len(values) == 1 else values[stage]


def fields(config: Config) -> dict[str, object]:
    """Every setting by its dotted name, `{"model.layers": 12, …}`, in the order of the tree."""
    flat: dict[str, object] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= {
                f"{f.name}.{g.name}": getattr(value, g.name) for g in dataclasses.fields(value)
            }
        else:
            flat[f.name] = value
    return flat


def update(config: Config, values: dict[str, object]) -> Config:
    """A copy of `config` with dotted names set to `values`, each checked against the field's type.

    Raises:
      ConfigError: for a name that no field has, or a value of another type.
    """
    known = fields(config)
    sections: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"The config has no field '{name}'.{hint} --help lists all fields.")
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = _typed(name, value, known[name])
    top = sections.pop("", {})
    parts = {s: dataclasses.replace(getattr(config, s), **v) for s, v in sections.items()}
    return dataclasses.replace(config, **parts, **top)


def to_dict(config: Config) -> dict:
    """The tree as nested dictionaries, ready for JSON (tuples become lists there)."""
    return dataclasses.asdict(config)


def from_dict(tree: dict) -> Config:
    """The typed tree back from `to_dict`, or from JSON.

    Raises:
      ConfigError: for unknown names and wrong types, as `update`.
    """
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{leaf}": v for leaf, v in value.items()}
        else:
            flat[name] = value
    return update(Config(), flat)


def _typed(name: str, value: object, like: object) -> object:
    """`value` as the type of the field's present value `like`; a tuple's items are alike."""
    wrong = ConfigError(f"config.{name} takes {_kind(like, name)}, but got {value!r}.")
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(like, tuple):
        items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        item = _item(name)
        return tuple(_typed(name, v, item) for v in items)
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) or type(value) is not type(like):
        raise wrong
    return value


def _item(name: str) -> object:
    """An example item of a tuple field, from its annotation (the tuple itself may be empty)."""
    section, _, leaf = name.rpartition(".")
    owner = type(getattr(Config(), section)) if section else Config
    text = str(owner.__annotations__[leaf])
    return 0 if "int" in text else 0.0 if "float" in text else ""


def _kind(like: object, name: str) -> str:
    if isinstance(like, tuple):
        return f"a list of {_kind(_item(name), name)}s"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[
        type(like)
    ]
