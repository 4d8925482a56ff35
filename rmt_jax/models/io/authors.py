"""The layouts of the authors' later checkpoints, brought to the one that they began with.

What their public code says (RodkinIvan/associative-recurrent-memory-transformer):

- A class of its own around a backbone (`MemoryCell.their_config`) has the backbone's config as
  `base_model_config` (or a name), and its tensors below `armt.memory_cell.`, or as `memory` and
  below `model.`.
- RMT-Llama-3.2-1B-Instruct-…-lora-babilong-… has a memory in every layer of a PEFT model: the
  backbone's weights, LoRA factors of rank 8 beside those of queries and values, below
  `memory_cell.model.base_model.model.`, and no config of the backbone. Alpha is in no file.
- A safetensors file keeps one of two names of a tensor: layers may stand below
  `memory_cell.layers.` alone, and a tied embedding as the head alone.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.models.backbones import BACKBONES, Backbone
from rmt_jax.models.cells import CELLS, TheirConfig
from rmt_jax.models.io import adapters
from rmt_jax.models.io.names import COPY, WRAPPER
from rmt_jax.models.io.weights import WeightsError

CELL = WRAPPER.split(".")[0] + "."
PEFT = f"{WRAPPER}{adapters.PREFIX}"
ALPHA = 32.0  # lora_alpha in their scripts
# Config of a backbone that a checkpoint says nothing of, by (vocabulary, width, layers).
BACKBONE_CONFIGS: dict[tuple[int, int, int], dict[str, Any]] = {
    (128_256, 2048, 16): {  # Llama 3.2 1B
        "model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip

Tensors = Mapping[str, Any]  # arrays; those of safetensors are lazy


def settle(
    theirs: Tensors, said: Mapping[str, Any], what: str
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Tensors and config.json of any layout -> those of the first one, and what had to be guessed,
    in words. What is none of the later layouts comes back as it is. Raises WeightsError for
    variants that our ARMT does not compute, by name."""
    tensors, config, guessed = dict(theirs), dict(said), []
    classes = (CELLS[name].their_config for name in CELLS)
    own = next((c for c in classes if c and c.model_type == said.get("model_type")), None)
    if own is not None:
        tensors, config = _in_the_cell(tensors), _of_both(said, own, what)
    lora = any(name.startswith((PEFT, COPY)) and "lora_" in name for name in tensors)
    if lora:
        tensors = {n.replace(PEFT, WRAPPER, 1): v for n, v in tensors.items()}
    copies = [name for name in tensors if name.startswith(COPY)]
    alone = copies and not any(re.search(r"\.\d+\.", n) for n in tensors if n.startswith(WRAPPER))
    if not (lora or alone or own):
        return tensors, config, guessed
    backbone = _backbone(tensors, what)
    for name in copies:
        twin, value = name.replace(COPY, WRAPPER + backbone.hf.layer_prefix, 1), tensors.pop(name)
        if not np.array_equal(tensors.setdefault(twin, value), value):
            raise WeightsError(f"{what}: {name} should be a second copy of {twin}, and differs.")
    tops = {ours: f"{WRAPPER}{name}" for name, ours in backbone.hf.top.items()}
    head = f"{WRAPPER}{backbone.hf.head}"
    if tops[backbone.embedding] not in tensors and head in tensors:
        tensors[tops[backbone.embedding]] = tensors[head]
    if lora:
        alpha = float(said.get("lora_alpha") or ALPHA)
        rank = next(value.shape[0] for name, value in tensors.items() if ".lora_A" in name)
        tensors = adapters.fold(tensors, backbone, alpha / rank, what)
        if not said.get("lora_alpha"):
            guessed.append(f"lora_alpha {ALPHA:g} (the authors')")
    if "correction" not in config and any(name.endswith(".W_mq.weight") for name in tensors):
        guessed.append("correction true (the authors' default)")
    sizes = (*tensors[tops[backbone.embedding]].shape, _layers(tensors, backbone))
    if not config.get("model_type") and sizes in BACKBONE_CONFIGS:
        config = BACKBONE_CONFIGS[sizes] | {k: v for k, v in config.items() if v is not None}
        guessed.append(f"the backbone's config, as its sizes {sizes} are those of Llama 3.2 1B")
    return tensors, config, guessed


def _in_the_cell(tensors: Tensors) -> dict[str, Any]:
    """Below `memory_cell.`, whatever class saved them."""
    bare = {name.removeprefix("armt."): value for name, value in tensors.items()}
    return {n if n.startswith(CELL) else f"{CELL}{n}": v for n, v in bare.items()}


def _of_both(said: Mapping[str, Any], own: TheirConfig, what: str) -> dict[str, Any]:
    """The config of the backbone, with what is said of the memory."""
    for key, value in own.required.items():
        if said.get(key) is not None and said[key] != value:
            raise WeightsError(
                f"The config of {what} says {key} = {said[key]!r}, but of {own.model_type} only"
                f" {value!r} can be loaded."
            )
    if not all(said.get("wrap_layers") or [True]):
        raise WeightsError(
            f"The config of {what} says wrap_layers with layers that have no memory: here every"
            " layer has one."
        )
    kind = (said.get("architectures") or list(own.classes))[0]
    if kind not in own.classes:
        raise WeightsError(
            f"{what} is a {kind}, but of the authors' classes only {' and '.join(own.classes)} can"
            " be loaded."
        )
    base = said.get("base_model_config") or said.get("base_model_name")
    if not isinstance(base, Mapping):
        base = _config_of(str(base), what)
    memory = ("num_mem_tokens", "segment_size", "segment_alignment", "correction")
    found = {"nu": 3, "correction": True}
    found |= {key: said[key] for key in memory if said.get(key) is not None}
    return dict(base) | found | dict(own.classes[kind])


def _config_of(name: str, what: str) -> dict[str, Any]:
    """config.json of a folder or of a name on the hub."""
    file = Path(name).expanduser() / "config.json"
    try:
        if not file.is_file():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(name, "config.json"))
        return json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:  # the hub's errors have no common parent below Exception
        raise WeightsError(
            f"{what} is made of the backbone {name}, whose config.json can't be had"
            f" ({type(error).__name__}): put it into the config.json here as base_model_config."
        ) from error


def _backbone(tensors: Tensors, what: str) -> type[Backbone]:
    """Whose layers these are: the one that has most of their names."""
    inside = {_inside(name) for name in tensors}
    known = [BACKBONES[name] for name in BACKBONES if set(BACKBONES[name].hf.marks) <= inside]
    best = max(known, key=lambda b: (len(inside & b.hf.layer.keys()), len(b.hf.marks)))
    if not inside & best.hf.layer.keys():
        raise WeightsError(f"{what} holds layers of a backbone that can't be loaded.")
    return best


def _inside(name: str) -> str:
    """'memory_cell.model.model.layers.3.layer.mlp.up_proj.base_layer.weight' -> 'mlp.up_proj.…'."""
    blocks = "|".join(
        re.escape(CELLS[cell].their_block) for cell in CELLS if CELLS[cell].their_block
    )
    short = re.sub(rf".*?\.\d+\.(?:{blocks})?", "", name, count=1)
    return short.replace(".base_layer.", ".")


def _layers(tensors: Tensors, backbone: type[Backbone]) -> int:
    numbers = (
        re.match(rf"{re.escape(WRAPPER + backbone.hf.layer_prefix)}(\d+)\.", name)
        for name in tensors
    )
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)
