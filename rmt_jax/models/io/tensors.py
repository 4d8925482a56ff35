"""Tensors of a folder, in one file or in the files that an index names."""

import json
from pathlib import Path

import numpy as np

from rmt_jax.files import refuse_pointer
from rmt_jax.models.io import torch_pickle, weights
from rmt_jax.models.io.weights import WeightsError

SINGLE = ("model.safetensors", "pytorch_model.bin")


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder: one file, or the files that an index names."""
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name)
        if index.is_file():
            return _read_sharded(index)
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise WeightsError(
        f"{folder} holds no weights: expected {', '.join(SINGLE)} or their .index.json, found: "
        f"{inside}."
    )


def _read_file(file: Path) -> dict[str, np.ndarray]:
    return torch_pickle.read(file) if file.suffix == ".bin" else weights.read_safetensors(file)


def _read_sharded(index: Path) -> dict[str, np.ndarray]:
    refuse_pointer(index)
    try:
        table = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        files = sorted(set(table.values()))
        inside = all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weight files: {error!r}.") from error
    if not inside:
        raise WeightsError(f"{index} names files outside its own folder; it was not followed.")
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        tensors |= _read_file(index.parent / name)
    missing = sorted(table.keys() - tensors.keys())
    if missing:
        raise WeightsError(f"{index} promises {missing[0]} and {len(missing) - 1} more not found.")
    return tensors
