"""LoRA adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

PEFT keeps two matrices beside each torch weight: `base_model.model.model.layers.0.self_attn.q_proj`
has `.lora_A.weight` (r, in) and `.lora_B.weight` (out, r), and what is added to the weight is
alpha / r times B·A. A folder of ours has two files more where they are needed: `rmt_jax.json`, the
config, and `rmt_jax.safetensors`, the memory and whatever else differs from the base model.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmt_jax import config as settings
from rmt_jax.files import write_text
from rmt_jax.models import lora
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.io import torch_pickle, weights
from rmt_jax.models.io.weights import WeightsError

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
OURS = "rmt_jax"  # our two files: .json and .safetensors
PREFIX = "base_model.model."
# 'default' is the adapter's name in a state that PEFT did not write itself.
TENSOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# What adapter_config.json must say, where it says it: other values compute something else.
REQUIRED = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base's weights
}


class Adapter(NamedTuple):
    """What a folder holds."""

    base: str  # the model that it was trained on: a hub name or a folder
    scale: float
    tensors: dict[str, np.ndarray]  # by their names, without `PREFIX`
    config: settings.Config | None  # ours, where the folder is of a run of ours
    ours: dict[str, np.ndarray]  # by our names: in place of the base's weights, or beside them


def base_of(folder: Path) -> str:
    """The hub name or folder that the adapters of a folder are for. Raises WeightsError."""
    base = _said(folder).get("base_model_name_or_path")
    if not base:
        raise WeightsError(f"{folder / CONFIG} lacks base_model_name_or_path.")
    return str(base)


def _said(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON: {error}.") from error


def read(folder: Path) -> Adapter:
    """Raises WeightsError for other kinds of adapters, by name, and for files that are missing."""
    file, said = folder / CONFIG, _said(folder)
    for key, allowed in REQUIRED.items():
        if key in said and said[key] not in allowed:
            raise WeightsError(
                f"{file} says {key} = {said[key]!r}, but only {allowed[0]!r} can be loaded."
            )
    rank, alpha, base = (said.get(key) for key in ("r", "lora_alpha", "base_model_name_or_path"))
    if not rank or alpha is None or not base:
        raise WeightsError(f"{file} lacks r, lora_alpha or base_model_name_or_path.")
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{folder} holds {CONFIG}, but neither {' nor '.join(FILES)}.")
    read_file = torch_pickle.read if found.suffix == ".bin" else weights.read_safetensors
    tensors = {name.removeprefix(PREFIX): value for name, value in read_file(found).items()}
    tree, extra = (folder / f"{OURS}.{end}" for end in ("json", "safetensors"))
    config = None
    if tree.is_file():
        config = settings.from_dict(json.loads(tree.read_text(encoding="utf-8")))
    return Adapter(
        str(base),
        float(alpha) / (rank**0.5 if said.get("use_rslora") else rank),
        tensors,
        config,
        weights.read_safetensors(extra) if extra.is_file() else {},
    )


def fold(
    theirs: Mapping[str, np.ndarray], backbone: type[Backbone], scale: float, what: str
) -> dict[str, np.ndarray]:
    """Tensors by their names with every adapter put into its weight, in float32.

    A weight `….q_proj.weight`, or `….q_proj.base_layer.weight` as PEFT calls it inside its wrapper,
    takes `scale` times the product of `….q_proj.lora_B.weight` and `….q_proj.lora_A.weight`.
    Raises WeightsError for a factor without the other, or without a weight.
    """
    out = {n.replace(".base_layer.", "."): v for n, v in theirs.items() if "lora_" not in n}
    pairs: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, value in theirs.items():
        match = TENSOR.fullmatch(name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = np.asarray(value, np.float32)
        elif "lora_" in name:
            strange.append(name)
    strange += [
        name for name, pair in pairs.items() if len(pair) < 2 or f"{name}.weight" not in out
    ]
    if strange:
        kernels = (n for n, ours in backbone.hf.layer.items() if ours.endswith(lora.KERNEL))
        known = dict.fromkeys(name.split(".")[-2] for name in kernels)
        raise WeightsError(
            f"{what} adapts {', '.join(strange[:4])}{' and more' if len(strange) > 4 else ''},"
            f" which is no matrix of a layer here with two factors of low rank."
            f" Adapters can stand beside the weights of: {', '.join(known)}."
        )
    for name, pair in pairs.items():
        weight = np.asarray(out[f"{name}.weight"], np.float32)
        added = scale * (pair["B"] @ pair["A"])  # (out, in), as torch's linear maps
        turned = [n for n, ours in backbone.hf.layer.items() if ours in backbone.hf.transposed]
        added = added if any(f"{name}.weight".endswith(f".{n}") for n in turned) else added.T
        if added.shape != weight.shape:
            raise WeightsError(
                f"{what}: the adapter of {name} is {list(added.shape)}, its weight"
                f" {list(weight.shape)}: it belongs to another base model."
            )
        out[f"{name}.weight"] = weight + added
    return out


def write(
    folder: Path,
    flat: Mapping[str, np.ndarray],
    backbone: type[Backbone],
    config: settings.Config,
    base: Mapping[str, np.ndarray],
) -> None:
    """Writes the adapters among the weights `flat`, by their names 'adapters/query/a', to `folder`.

    base: the weights of the model that `config.init` names; what differs from them goes along.
    Raises WeightsError for matrices that Hugging Face's model does not have by themselves.
    """
    theirs = {ours: name for name, ours in backbone.hf.layer.items()}
    matrices = {lora.short_name(ours): name for ours, name in theirs.items() if "/" in ours}
    tensors: dict[str, np.ndarray] = {}
    targets = []
    for name in sorted({n.split("/")[1] for n in flat if n.startswith(f"{lora.TREE}/")}):
        if name not in matrices:
            raise WeightsError(
                f"The adapter of {name} can't be written for PEFT: Hugging Face has no such matrix."
            )
        module = matrices[name].removesuffix(".weight")
        targets.append(module)
        for part, letter in (("a", "A"), ("b", "B")):
            for layer, value in enumerate(flat[f"{lora.TREE}/{name}/{part}"]):
                place = f"{PREFIX}{backbone.hf.layer_prefix}{layer}.{module}.lora_{letter}.weight"
                tensors[place] = np.ascontiguousarray(np.asarray(value, np.float32).T)
    said: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.init,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": not backbone.hf.transposed,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    weights.write(folder / FILES[0], tensors, {"format": "pt"})
    own = {
        name: np.ascontiguousarray(value)
        for name, value in flat.items()
        if not name.startswith(f"{lora.TREE}/") and not _same(base.get(name), value)
    }
    if own:
        weights.write(folder / f"{OURS}.safetensors", own, {"format": OURS})
    write_text(folder / f"{OURS}.json", json.dumps(settings.to_dict(config), indent=1) + "\n")
    write_text(folder / CONFIG, json.dumps(said, indent=1) + "\n")


def _same(base: np.ndarray | None, value: np.ndarray) -> bool:
    return base is not None and np.array_equal(np.asarray(base, np.float32), value)
