"""What a config must hold to, as sentences: checked before data or devices are touched."""

import dataclasses
import math
import re

from rmt_jax.config import (
    ALIGNS,
    CELLS,
    POSITIONS,
    PROMPT_PLACES,
    PROMPT_SOURCES,
    SCHEDULES,
    SIDES,
    Config,
    ConfigError,
    fields,
)

# Fields that the rules of `validate` do not treat by name: least and greatest value, None for none.
BOUNDS: tuple[tuple[str, float, float | None], ...] = (
    ("model.gate_threshold", 0, 0.99),
    ("prompt.tokens", 0, None),
    ("data.new_names", 0, 1),
    ("data.decoys", 0, 1),
    ("data.workers", 0, 512),
    ("data.seed", 0, 2**31 - 1),
    ("curriculum.learning_rate", 0, None),
    ("curriculum.probes", 0, 1),
    ("optimizer.weight_decay", 0, None),
    ("optimizer.b1", 0, 0.999999),
    ("optimizer.b2", 0, 0.999999),
    ("optimizer.clip", 0, None),
    ("optimizer.conv_rate", 0, None),
    ("optimizer.stillness", 0, None),
    ("optimizer.warmup", 0, 1),
    ("optimizer.adam_learning_rate", 0, None),
    ("evaluation.every", 0, None),
    ("evaluation.seed", 0, 2**31 - 1),
    ("seed", 0, 2**31 - 1),
    ("log_every", 1, None),
)


def validate(config: Config) -> None:
    """Checks what can be checked without data or devices.

    Raises:
      ConfigError: one sentence with the numbers and the way out.
    """
    m, p, d, c = config.model, config.prompt, config.data, config.curriculum
    _one_of("model.cell", m.cell, CELLS)
    _one_of("model.positions", m.positions, POSITIONS)
    _one_of("model.position_layout", m.position_layout, ("plain", "wrap_pos"))
    _one_of("model.dtype", m.dtype, ("auto", "float32", "bfloat16"))
    _one_of("model.attention", m.attention, ("auto", "xla"))
    _one_of("model.schedule", m.schedule, SCHEDULES)
    _one_of("prompt.source", p.source, PROMPT_SOURCES)
    _one_of("prompt.place", p.place, PROMPT_PLACES)
    _one_of("data.facts", d.facts, ("simulated", "official", "both"))
    _one_of("data.align", d.align, ALIGNS)
    _one_of("optimizer.name", config.optimizer.name, ("adamw", "muon"))
    _one_of("optimizer.decay", config.optimizer.decay, ("linear", "cosine", "constant"))
    for name in ("layers", "width", "heads", "max_positions", "segment_tokens", "d_mem", "nu"):
        _at_least(f"model.{name}", getattr(m, name), 1)
    for name in ("memory_tokens", "conv_width", "bptt"):
        _at_least(f"model.{name}", getattr(m, name), 0)
    if m.width % m.heads:
        raise ConfigError(
            f"model.width {m.width} does not divide into model.heads {m.heads}: choose a width that"
            f" is a multiple of the heads, e.g. {m.heads * max(1, round(m.width / m.heads))}."
        )
    if len(m.gate_threshold) not in (0, 1, m.layers):
        raise ConfigError(
            f"model.gate_threshold has {len(m.gate_threshold)} numbers for {m.layers} layers: give"
            " one for each, one for all, or none."
        )
    if SIDES[m.cell] and m.memory_tokens == 0:
        raise ConfigError(
            f"model.cell '{m.cell}' needs memory tokens, but model.memory_tokens is 0: set it to 1"
            " or more, or take model.cell=delta, which has none."
        )
    if m.schedule == "diagonal":
        check_diagonal(m.cell)
        if config.optimizer.stillness:
            raise ConfigError(
                f"optimizer.stillness {config.optimizer.stillness:g} needs the memory after each"
                " segment, which the diagonal schedule never holds whole: take"
                " model.schedule=auto, or set optimizer.stillness to 0."
            )
    if p.source != "none":
        _at_least("prompt.tokens", p.tokens, 1)
    prompt = 0 if p.source == "none" else p.tokens
    sides = SIDES[m.cell]
    if m.position_layout == "wrap_pos" and sides:
        sides -= 1  # the write memory has rows of its own
        if m.positions != "learned":
            raise ConfigError(
                "model.position_layout=wrap_pos gives memory tokens rows of the position table,"
                f" which model.positions={m.positions} does not have: take"
                " model.positions=learned, or model.position_layout=plain."
            )
    need = sides * m.memory_tokens + prompt + m.segment_tokens
    if m.positions == "rotary" and m.width // m.heads % 2:
        raise ConfigError(
            f"Rotary positions turn pairs of columns, but a head has {m.width // m.heads}"
            " (model.width / model.heads): make that an even number."
        )
    if m.positions == "learned" and need > m.max_positions:
        raise ConfigError(
            f"{sides}·{m.memory_tokens} memory + {prompt} prompt + {m.segment_tokens:,} segment"
            f" tokens = {need:,} positions, but the backbone has {m.max_positions:,}: lower"
            f" model.segment_tokens to {max(1, m.segment_tokens - need + m.max_positions):,} or"
            " raise model.max_positions."
        )
    if not d.tasks:
        raise ConfigError("data.tasks is empty: name at least one task, e.g. qa1.")
    for task in d.tasks:
        _one_of("data.tasks", task, tuple(f"qa{i}" for i in range(1, 21)))
    if len(set(d.tasks)) < len(d.tasks):
        raise ConfigError(f"data.tasks names a task twice: {','.join(d.tasks)}.")
    if d.weights and (len(d.weights) != len(d.tasks) or min(d.weights) < 0 or not sum(d.weights)):
        raise ConfigError(
            f"data.weights has {len(d.weights)} numbers for {len(d.tasks)} tasks: give one weight"
            " of 0 or more for each task (not all 0), or none at all."
        )
    if d.facts == "official" and not d.babi_dir:
        raise ConfigError(
            "data.facts=official needs data.babi_dir, the folder of the bAbI text files"
            " (qa1_single-supporting-fact_train.txt, …)."
        )
    if any(c.probes) and m.schedule == "diagonal":
        raise ConfigError(
            "curriculum.probes=1 asks the memory of one segment after the other, which the diagonal"
            " schedule never holds whole: take model.schedule=auto, or set curriculum.probes to 0."
        )
    if d.facts != "simulated" and any(c.probes):
        raise ConfigError(
            "curriculum.probes=1 needs the answer after every fact, which the official files do"
            " not give: take data.facts=simulated, or set curriculum.probes to 0."
        )
    stages = len(c.segments)
    if not stages:
        raise ConfigError("curriculum.segments is empty: a curriculum needs at least one stage.")
    for name, value in dataclasses.asdict(c).items():
        if len(value) not in (1, stages):
            raise ConfigError(
                f"curriculum.{name} has {len(value)} entries for {stages} stage{'s' * (stages > 1)}"
                f" (curriculum.segments): give {stages}, or one for all stages."
            )
    for name in ("segments", "batch"):
        for value in getattr(c, name):
            _at_least(f"curriculum.{name}", value, 1)
    for value in c.steps:
        _at_least("curriculum.steps", value, 0)
    for value in c.background:
        if not 0 <= value <= 1:
            raise ConfigError(f"curriculum.background is a probability, but got {value}.")
    if config.optimizer.accumulate < 1 or any(b % config.optimizer.accumulate for b in c.batch):
        raise ConfigError(
            f"optimizer.accumulate {config.optimizer.accumulate} does not divide the batches"
            f" {c.batch}: every curriculum.batch must be a multiple of it."
        )
    for name in ("samples", "batch"):
        _at_least(f"evaluation.{name}", getattr(config.evaluation, name), 1)
    for name in ("every", "keep"):
        _at_least(f"checkpoint.{name}", getattr(config.checkpoint, name), 1)
    _validate_texts(config)
    flat: dict = fields(config)
    for name, least, most in BOUNDS:
        for value in flat[name] if isinstance(flat[name], tuple) else (flat[name],):
            if not least <= value <= (value if most is None else most):  # also not-a-number
                limits = f"{least} or more" if most is None else f"between {least} and {most}"
                raise ConfigError(f"config.{name} must be {limits}, but got {value}.")
    if config.optimizer.name == "muon" and not c.learning_rate[0] > 0:
        raise ConfigError(
            f"curriculum.learning_rate begins with {c.learning_rate[0]}, but with optimizer.name="
            "muon the rates of Adam's weights are in proportion to it: give a number above 0."
        )


def check_diagonal(cell: str) -> None:
    """Raises ConfigError for a cell that the diagonal schedule cannot run."""
    if cell not in ("prmt", "armt", "delta"):
        why = "it has no memory, and its segments do not depend on each other"
        if cell == "rmt":
            why = "its last layer's output of one segment is the first layer's input of the next"
        raise ConfigError(
            f"model.schedule=diagonal does not go with model.cell={cell}: {why}. Take"
            " model.cell=armt, delta or prmt, whose layers keep their own memory, or"
            " model.schedule=auto."
        )


def _validate_texts(config: Config) -> None:
    """The fields that are small languages of their own."""
    if not config.evaluation.lengths:
        raise ConfigError("evaluation.lengths is empty: name at least one length, e.g. 4s.")
    for text in config.curriculum.tasks:
        weights = [word.partition(":")[2] or "1" for word in text.split()]
        try:
            shares = [float(weight) for weight in weights]
        except ValueError:  # said where names are read
            continue
        if shares and not (min(shares) >= 0 and 0 < sum(shares) < math.inf):
            raise ConfigError(
                f"curriculum.tasks: '{text}' must have weights of 0 or more, not all 0."
            )
    for length in config.evaluation.lengths:
        if not re.fullmatch(r"[1-9]\d*[skM]?|0k", length):
            raise ConfigError(
                f"evaluation.lengths: '{length}' is no length: write 4s (segments), 0k (facts"
                " only), 4k or 1M (nominal tokens), or 300 (tokens of context)."
            )
    for text in config.curriculum.questions:
        rates = text.split()
        if not rates or not all(re.fullmatch(r"0?\.\d+|[01](\.0*)?", rate) for rate in rates):
            raise ConfigError(
                f"curriculum.questions: '{text}' is no list of probabilities such as '1 .5 0'."
            )
    dense = any(float(rate) > 0 for text in config.curriculum.questions for rate in text.split())
    if config.optimizer.stillness and not (dense or any(config.curriculum.probes)):
        raise ConfigError(
            f"optimizer.stillness {config.optimizer.stillness:g} needs texts that are asked in"
            " every segment: give curriculum.questions a chance above 0, curriculum.probes 1,"
            " or stillness to 0."
        )
    if not sum(config.curriculum.steps):
        raise ConfigError("curriculum.steps is 0 in every stage: there is nothing to train.")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"config.{name} must be one of {', '.join(choices)}, but got '{value}'.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"config.{name} must be {least} or more, but got {value}.")
