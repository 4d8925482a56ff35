"""Do the sizes of a model fit together? Checked once, before anything is allocated."""

from rmt_jax.config import CELLS, POSITIONS, ConfigError, Model, Prompt

LAYOUTS = ("plain", "wrap_pos")


def memory_places(cell: str) -> int:
    """How many times the M memory tokens stand in a segment."""
    return {"none": 0, "armt": 1}.get(cell, 2)


def check(config: Model, prompt: Prompt) -> None:
    """Raises ConfigError with a sentence when a model of these sizes can't be built."""
    _one_of("cell", config.cell, CELLS)
    _one_of("positions", config.positions, POSITIONS)
    _one_of("position_layout", config.position_layout, LAYOUTS)
    for name in ("layers", "width", "heads", "segment_tokens", "max_positions"):
        if getattr(config, name) < 1:
            raise ConfigError(f"model.{name} is {getattr(config, name)}; it must be at least 1.")
    if config.width % config.heads:
        raise ConfigError(
            f"model.width {config.width} does not divide into model.heads {config.heads} heads; "
            f"choose a multiple, for example {config.heads * max(1, config.width // config.heads)}."
        )
    if config.positions == "rotary" and config.width // config.heads % 2:
        raise ConfigError(
            f"Rotary positions turn pairs, but a head has {config.width // config.heads} columns "
            "(model.width / model.heads); make that an even number."
        )
    if config.cell != "none" and config.memory_tokens < 1:
        raise ConfigError(
            f"model.cell {config.cell} needs memory tokens, but model.memory_tokens is "
            f"{config.memory_tokens}; set it to 1 or more, or model.cell to none."
        )
    if config.conv_width < 0:
        raise ConfigError(f"model.conv_width is {config.conv_width}; 0 turns it off.")
    if config.cell == "armt" and (config.d_mem < 1 or config.nu < 1):
        raise ConfigError(
            f"An associative memory has 2 * nu * d_mem rows; model.nu {config.nu} and "
            f"model.d_mem {config.d_mem} must both be at least 1."
        )
    if config.positions == "learned":
        _fits(config, prompt)


def _fits(config: Model, prompt: Prompt) -> None:
    places = memory_places(config.cell)
    words = prompt.tokens if prompt.source != "none" else 0
    wrapped = config.position_layout == "wrap_pos" and places
    counted = places - 1 if wrapped else places  # wrapped writes have rows of their own
    needed = counted * config.memory_tokens + words + config.segment_tokens
    if needed > config.max_positions:
        raise ConfigError(
            f"{counted}·{config.memory_tokens} memory + {words} prompt + "
            f"{config.segment_tokens:,} tokens = {needed:,} positions, but the backbone has "
            f"{config.max_positions:,}; shorten model.segment_tokens, model.memory_tokens or "
            "prompt.tokens, or use model.positions alibi."
        )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"model.{name} is {value!r}; it must be one of: {', '.join(known)}.")
