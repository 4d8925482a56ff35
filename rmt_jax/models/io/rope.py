"""Rotary positions in Hugging Face's config.json: `RopeOptions` from there, and back."""

from collections.abc import Mapping
from typing import Any

from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops.rotary import RopeOptions

LLAMA3 = {  # HF's key -> (ours, its type)
    "factor": ("rope_factor", float),
    "low_freq_factor": ("rope_low_turns", float),
    "high_freq_factor": ("rope_high_turns", float),
    "original_max_position_embeddings": ("rope_trained_positions", int),
}


def parameters(said: Mapping[str, Any], what: str, known: tuple[str, ...]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling` (4), with its kind as `rope_type`.
    Raises WeightsError for kinds of scaling that are not `known`, by name."""
    about = said.get("rope_parameters") or said.get("rope_scaling") or {}
    kind = about.get("rope_type", about.get("type", "default"))
    if kind not in known:
        raise WeightsError(
            f"The config of {what} says rope_type = {kind!r}, but only"
            f" {' and '.join(map(repr, known))} can be loaded: this backbone computes nothing else."
        )
    return dict(about) | {"rope_type": kind}


def from_hf(said: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Fields of `RopeOptions`, of `rope_parameters` (transformers 5) or of `rope_theta` and
    `rope_scaling` (4). Raises WeightsError for other kinds of scaling, by name."""
    about = parameters(said, what, ("default", "llama3"))
    kind = about["rope_type"]
    share = about.get("partial_rotary_factor", said.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise WeightsError(
            f"The config of {what} says partial_rotary_factor = {share}, but only 1 can be loaded:"
            " this backbone turns all columns of a head."
        )
    base = about.get("rope_theta") or said.get("rope_theta") or 10_000.0
    found: dict[str, Any] = {"rope_base": float(base)}
    if kind == "default":
        return found
    missing = [key for key in LLAMA3 if key not in about]
    if missing:
        raise WeightsError(
            f"The config of {what} says rope_type = 'llama3' without {', '.join(missing)}: add what"
            " the model was trained with."
        )
    found |= {name: kind(about[key]) for key, (name, kind) in LLAMA3.items()}
    return found | {"rope_scaling": "llama3"}


def to_hf(options: RopeOptions) -> dict[str, Any]:
    """The same as fields of a config.json, for transformers 4 and 5."""
    scaled = options.rope_scaling == "llama3"
    about: dict[str, Any] = {"rope_type": "llama3" if scaled else "default"}
    if scaled:
        about |= {key: getattr(options, name) for key, (name, _) in LLAMA3.items()}
    return {
        "rope_theta": options.rope_base,
        "rope_scaling": dict(about) if scaled else None,
        "rope_parameters": about | {"rope_theta": options.rope_base},
    }
