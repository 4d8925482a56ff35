"""The experiment as one typed tree: every field with its default, help, unit and limits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from rmt_jax.config.setting import FrozenDict, freeze, section, setting
from rmt_jax.config.sources import Questions, Texts

LARGEST_SEED = 2**31 - 1
# Checkpoints that come with the package; all have its tokenizer.
SHIPPED = (
    "backbone",
    "backbone-ten",
    "backbone-rmt",
    "multitask",
    "multitask-rmt",
    "multitask-ten",
    "multitask-wide",
)


@dataclass(frozen=True)
class Model:
    backbone: str = setting(
        "gpt2",
        "Name of a registered backbone. init: that of the weights in `init`, with their layers,"
        " width, heads, positions, tied_head and backbone_options, which are left out then.",
    )
    cell: str = setting("delta", "Name of a registered memory cell: what segments hand on.")
    layers: int = setting(12, "Transformer layers.", least=1)
    width: int = setting(768, "Size D of hidden states.", least=1)
    heads: int = setting(12, "Attention heads; they divide the width.", least=1)
    positions: str = setting(
        "learned",
        "How a token's place is known; learned is GPT-2's table.",
        choices=("learned", "alibi", "rotary"),
    )
    max_positions: int = setting(1024, "Size of the learned position table.", least=1)
    conv_width: int = setting(
        0,
        "Causal depthwise convolution on the attention input; 0 for none, as in GPT-2.",
        unit="tokens",
        least=0,
    )
    segment_tokens: int = setting(512, "Length L of a segment.", unit="tokens", least=1)
    memory_tokens: int = setting(
        16, "Number M of memory tokens, in cells that have them.", unit="tokens", least=0
    )
    position_layout: str = setting(
        "plain",
        "Positions of memory tokens: plain counts them with the text, wrap_pos gives them entries"
        " of their own behind the table.",
        choices=("plain", "wrap_pos"),
    )
    d_mem: int = setting(
        64, "Width of keys in an associative memory; in ARMT before the DPFP feature map.", least=1
    )
    nu: int = setting(3, "Order of ARMT's DPFP feature map: keys have 2 * nu * d_mem.", least=1)
    gate_threshold: tuple[float, ...] = setting(
        (),
        "Gates that would open less than this stay shut. One number, one per layer (delta), or"
        " none.",
        least=0,
        most=0.99,
    )
    bptt: int = setting(
        0, "Segments that gradients flow back through; 0 for all.", unit="segments", least=0
    )
    remat: bool = setting(
        True,
        "Recompute each segment in the backward pass to save memory. Without it a CPU keeps the"
        " results of products with weights, an accelerator everything.",
    )
    scan_layers: bool = setting(
        True, "Layers as one compiled loop, fast to compile, or else unrolled."
    )
    dtype: str = setting(
        "auto",
        "Type of computation; auto is bfloat16 on accelerators.",
        choices=("auto", "float32", "bfloat16"),
    )
    attention: str = setting(
        "auto",
        "auto takes cuDNN's kernel on NVIDIA GPUs and JAX's on TPUs, where they apply.",
        choices=("auto", "xla"),
    )
    schedule: str = setting(
        "auto",
        "Order of layers and segments; diagonal runs layers of several segments side by side.",
        choices=("auto", "sequential", "diagonal"),
    )
    tied_head: bool = setting(True, "Logits through the embedding table, or a head of its own.")
    backbone_options: Mapping[str, object] = setting(
        FrozenDict(), "Further settings that the backbone declares."
    )
    cell_options: Mapping[str, object] = setting(
        FrozenDict(), "Further settings that the memory cell declares."
    )

    def __post_init__(self):
        freeze(self)


@dataclass(frozen=True)
class Prompt:
    source: str = setting(
        "description",
        "Text of the task prompt; learned is a vector per task.",
        choices=("none", "question", "description", "both", "learned"),
    )
    place: str = setting(
        "every",
        "Segments that see the prompt: the first alone, or every one.",
        choices=("start", "every"),
    )
    tokens: int = setting(24, "Room P for the prompt.", unit="tokens", least=0)


@dataclass(frozen=True)
class Data:
    tasks: tuple[str, ...] = setting(
        (), "Tasks to train on: names of registered ones, of `questions` and of `texts`."
    )
    weights: tuple[float, ...] = setting(
        (),
        "Shares of the tasks, one each; empty: equal shares. Where some model a language, the loss"
        " is the mean over answers' tokens and the mean over passages' tokens, each times its share"
        " of the texts.",
    )
    facts: str = setting(
        "simulated",
        "Where bAbI stories come from. Of stories of official length, both takes half from the"
        " files.",
        choices=("simulated", "official", "both"),
    )
    babi_dir: str = setting("", "Folder of the official bAbI text files.", path=True)
    new_names: float = setting(
        0.0, "Share of stories whose persons, places and objects bear new names.", least=0, most=1
    )
    unknown_rate: float = setting(
        0.0,
        "Share of training stories that are asked for a person, object or place that they do not"
        " have; the answer is 'unknown'.",
        least=0,
        most=1,
    )
    background: str = setting(
        "builtin", "Text that hides the facts: builtin, none, or a folder of .txt files.", path=True
    )
    hard_negative_rate: float = setting(
        0.0,
        "Share of training samples whose background is hard negatives: sentences with a name of"
        " the tasks, and nothing else.",
        least=0,
        most=1,
    )
    tokenizer: str = setting(
        "builtin",
        "builtin, init (that of the weights in `init`), a name on the hub, a folder, or a GGUF"
        " file.",
        path=True,
    )
    task_options: Mapping[str, Mapping[str, object]] = setting(
        FrozenDict(), "Further settings that tasks declare, by task: {recall: {rewrites: 0.5}}."
    )
    seed: int = setting(0, "Of stories and backgrounds.", least=0, most=LARGEST_SEED)
    workers: int = setting(
        0, "Processes that make batches; 0 for threads of this one.", least=0, most=512
    )
    align: str = setting(
        "left",
        "Where the text of a ragged segment stands; sentence ends segments with sentences.",
        choices=("left", "right", "sentence"),
    )
    questions: Mapping[str, Questions] = setting(
        FrozenDict(), "Tasks of your own, made of question-and-answer rows, by name."
    )
    texts: Mapping[str, Texts] = setting(
        FrozenDict(), "Tasks of your own that model a language, by name."
    )

    def __post_init__(self):
        freeze(self)


@dataclass(frozen=True)
class Facts:
    """A range from which the number of facts of a story is drawn."""

    least: int = setting(help="Fewest facts of a story.", least=2)
    most: int = setting(help="Most facts of a story.", least=2)


OFFICIAL = None  # in place of a `Facts`: the number of facts that the official files have


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum."""

    segments: int = setting(
        help="Longest texts. A batch has 1, 2, 4, ... or all of them, so few shapes are compiled.",
        unit="segments",
        least=1,
    )
    steps: int = setting(help="Optimizer steps; 0 leaves the stage out.", unit="steps", least=0)
    batch: int = setting(help="Texts per step, over all devices.", unit="texts", least=1)
    learning_rate: float = setting(help="Peak learning rate of the stage.", least=0)
    tasks: Mapping[str, float] = setting(
        FrozenDict(), "Share of each task; empty: all of data.tasks, by data.weights.", least=0
    )
    facts: tuple[Facts | None, ...] = setting(
        (OFFICIAL,),
        "Facts per story. One range is drawn per sample, so an entry that stands twice counts"
        " double; null is the number that the official files have.",
    )
    background: float = setting(
        1.0, "Share of samples that are hidden in background text.", least=0, most=1
    )
    question_rates: tuple[float, ...] = setting(
        (0.0,),
        "Chance of a question after each fact. One entry is drawn per sample; 0 asks at the end"
        " only.",
        least=0,
        most=1,
    )
    last_questions: int = setting(
        0,
        "Other questions of the task that a story is asked behind its last fact, before its own.",
        unit="questions",
        least=0,
    )
    probes: bool = setting(False, "Ask the memory the question after every segment.")

    def __post_init__(self):
        freeze(self)

    @property
    def dense(self) -> bool:
        """Whether texts of this stage may be asked more than once."""
        return max(self.question_rates) > 0 or self.last_questions > 0

    @property
    def buckets(self) -> tuple[int, ...]:
        """1, 2, 4, ... and `segments` itself: the lengths of its batches, in segments."""
        powers = [2**i for i in range(self.segments.bit_length()) if 2**i < self.segments]
        return (*powers, self.segments)


# The paper's curriculum (Bulatov et al. 2022).
STAGES = tuple(
    Stage(segments, steps, batch=64, learning_rate=1e-5)
    for segments, steps in ((1, 15_000), *((n, 10_000) for n in (2, 4, 6, 8, 16, 32)))
)


@dataclass(frozen=True)
class Optimizer:
    name: str = setting(
        "adamw",
        "muon: Muon on the layers' matrices and Adam on the rest.",
        choices=("adamw", "muon"),
    )
    train: str = setting(
        "all",
        "Weights that change. memory: those of the memory cell and a learned prompt. lora: these"
        " and adapters beside the backbone's matrices. The backbone stays as `init` has it.",
        choices=("all", "memory", "lora"),
    )
    weight_decay: float = setting(0.01, "Decoupled, times the learning rate.", least=0)
    b1: float = setting(0.9, "Adam: decay of the mean of gradients.", least=0, most=0.999999)
    b2: float = setting(0.999, "Adam: decay of the mean of squares.", least=0, most=0.999999)
    clip: float = setting(1.0, "Largest norm of a gradient; 0 for no limit.", least=0)
    warmup: float = setting(0.1, "Share of a stage's steps that warm up.", least=0, most=1)
    decay: str = setting(
        "linear",
        "Learning rate after the warmup.",
        choices=("linear", "cosine", "constant"),
    )
    adam_learning_rate: float = setting(
        0.0,
        "Muon: rate of what Adam trains, in the first stage, in proportion in others; 0: the"
        " stage's.",
        least=0,
    )
    conv_lr_multiplier: float = setting(
        1.0, "Learning rate of the short convolution, times that of the rest.", least=0
    )
    memory_lr_multiplier: float = setting(
        1.0, "Learning rate of the memory cell's weights, times that of the rest.", least=0
    )
    accumulate: int = setting(1, "Gradient accumulation.", unit="microbatches per step", least=1)
    memory_drift_penalty: float = setting(
        0.0, "Weight of the penalty on what background does to the memory.", least=0
    )

    def trains(self, weight: str) -> bool:
        """Whether the weight of a name such as 'backbone/wte' changes."""
        return self.train == "all" or not weight.startswith("backbone/")


@dataclass(frozen=True)
class Lora:
    rank: int = setting(8, "Rank r of an adapter.", least=1)
    alpha: float = setting(16.0, "An adapter counts alpha / rank times.", least=0)
    targets: tuple[str, ...] = setting(
        (),
        "Matrices of the layers that get an adapter, by our names or by Hugging Face's (q_proj,"
        " c_attn); empty: all.",
    )

    def __post_init__(self):
        freeze(self)


@dataclass(frozen=True)
class Mesh:
    data: int = setting(-1, "Copies of the model; -1: whatever devices are left.", unit="devices")
    fsdp: int = setting(1, "Devices that share one copy of weights and state.", unit="devices")
    tensor: int = setting(1, "Devices that share each product.", unit="devices")


@dataclass(frozen=True)
class Checkpoint:
    every: int = setting(500, "Between checkpoints.", unit="steps", least=1)
    keep: int = setting(2, "Checkpoints that are kept, beside the best.", least=1)


@dataclass(frozen=True)
class Evaluation:
    lengths: tuple[str, ...] = setting(
        ("1s", "2s", "4s"),
        "Lengths of texts: 4s is 4 segments, 4k and 1M BABILong's nominal tokens, 0k facts alone,"
        " 300 tokens of context, all documents of any length.",
    )
    samples: int = setting(100, "Questions per task and length.", unit="questions", least=1)
    batch: int = setting(50, "Texts side by side.", unit="texts", least=1)
    every: int = setting(
        0, "Between validations in training; 0: at the end of a stage.", unit="steps", least=0
    )
    seed: int = setting(1, "Of the stories that are asked.", least=0, most=LARGEST_SEED)
    score: str = setting(
        "",
        "Rule of `rmt_jax.scores` that tables and pictures show, where a task has it; empty: the"
        " task's first. scores.csv has all.",
    )


@dataclass(frozen=True)
class Config:
    model: Model = section(Model, "The backbone and its memory.")
    prompt: Prompt = section(Prompt, "What says which task is asked.")
    data: Data = section(Data, "Tasks, stories and background.")
    stages: tuple[Stage, ...] = setting(
        STAGES, "The curriculum; its stages are trained one after another."
    )
    optimizer: Optimizer = section(Optimizer, "How weights are updated.")
    lora: Lora = section(Lora, "Adapters, where optimizer.train=lora (Hu et al. 2021).")
    mesh: Mesh = section(Mesh, "How devices share the work.")
    checkpoint: Checkpoint = section(Checkpoint, "What is kept while training.")
    evaluation: Evaluation = section(Evaluation, "Validation, and the tables after training.")
    init: str = setting(
        "",
        "Weights to start from: a folder, a GGUF file, a name on the hub, or what ships with the"
        f" package ({', '.join(SHIPPED)}); empty: random.",
        path=True,
    )
    imports: tuple[str, ...] = setting(
        (), "Modules of your own that register backbones, memory cells or tasks."
    )
    seed: int = setting(0, "Of the first weights.", least=0, most=LARGEST_SEED)
    log_every: int = setting(10, "Between log lines.", unit="steps", least=1)

    def __post_init__(self):
        freeze(self)

    def replace(self, **sections) -> "Config":
        return dataclasses.replace(self, **sections)

    @property
    def tokenizer(self) -> str:
        """What `data.tokenizer` stands for: builtin, a name on the hub, a folder or a GGUF file."""
        if self.data.tokenizer != "init":
            return self.data.tokenizer
        return "builtin" if self.init in SHIPPED else self.init

    @property
    def adapters(self) -> Lora | None:
        """The adapters that a training of this config has; None: no adapters."""
        return self.lora if self.optimizer.train == "lora" else None

    @property
    def longest_segments(self) -> int:
        """Segments of the longest texts in training."""
        return max(stage.segments for stage in self.stages)
