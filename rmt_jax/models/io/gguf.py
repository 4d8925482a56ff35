"""GGUF files, as llama.cpp and its kin keep models: weights, sizes and tokenizer in one file.

The package `gguf` (extra `gguf`) reads the file and dequantises. What comes out has the form of a
Hugging Face folder: tensors by name, and the fields of a config.json, so that both are read by the
same code. Which tensor is which weight is the backbone's to say (`Backbone.gguf`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.gguf_file import GGUFError, open_file, tokenizer_of
from rmt_jax.models.io import rope
from rmt_jax.models.io.lazy import Index, LazyArray
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.models.ops.rotary import RopeOptions, frequencies

SIZES = {  # their key after 'llama.' -> HF's in config.json
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "rope.freq_base": "rope_theta",
}
ROPE_FACTORS = "rope_freqs.weight"  # what Llama 3.1's scaling divides each frequency by
# The same in every Llama 3.1 to 3.3; files hold the result alone.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Contents(NamedTuple):
    """What a file holds."""

    architecture: str
    tensors: dict[str, LazyArray]  # float32, by their names: 'blk.0.attn_q.weight', (out, in)
    said: dict[str, Any]  # fields of a config.json
    tokenizer: dict[str, Any]  # what the metadata say of a tokenizer, as it stands there


def read(file: Path) -> Contents:
    """What a file holds; of the tensors nothing is read yet. Raises WeightsError for a file that is
    cut off or no GGUF, and for quantisations that the package `gguf` does not know."""
    try:
        reader, metadata = open_file(file)
    except GGUFError as error:
        raise WeightsError(str(error)) from error
    tensors = {tensor.name: _lazy(tensor, file) for tensor in reader.tensors}
    architecture = str(metadata.get("general.architecture", ""))
    said = _config(metadata, architecture, tensors, file)
    return Contents(architecture, tensors, said, tokenizer_of(metadata))


def _lazy(tensor: Any, file: Path) -> LazyArray:
    """A tensor that is turned into numbers some rows at a time."""
    from gguf import dequantize

    data, kind = tensor.data, tensor.tensor_type
    try:
        dequantize(data[:1], kind)
    except NotImplementedError as error:
        raise WeightsError(
            f"{file}: {tensor.name} is quantised as {kind.name}, which the package gguf can't"
            " turn into numbers. Take another file of this model, such as one of Q8_0 or F16."
        ) from error
    shape = [int(size) for size in reversed(tensor.shape)]

    def read(index: Index) -> np.ndarray:
        rows, *rest = index
        found = np.asarray(dequantize(data[rows], kind), np.float32)
        return found.reshape(-1, *shape[1:])[(slice(None), *rest)]

    return LazyArray(shape, np.float32, read)


def _config(
    metadata: Mapping[str, Any],
    architecture: str,
    tensors: Mapping[str, LazyArray],
    file: Path,
) -> dict[str, Any]:
    """The metadata as HF's config.json would say it."""
    own = f"{architecture}."
    said = {theirs: metadata.get(own + key) for key, theirs in SIZES.items()}
    said = {key: _short(value) for key, value in said.items() if value is not None}
    ends = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom"))
    said["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None))
    said["use_sliding_window"] = "sliding_window" in said
    width, heads = metadata.get(f"{own}embedding_length", 0), said.get("num_attention_heads") or 1
    head = metadata.get(f"{own}attention.key_length", width // heads)
    turned = metadata.get(f"{own}rope.dimension_count", head)
    if turned != head:
        said["partial_rotary_factor"] = turned / head
    kind = metadata.get(f"{own}rope.scaling.type", "none")
    if kind != "none":
        said["rope_scaling"] = {"rope_type": kind}
    if ROPE_FACTORS in tensors:
        base = said.get("rope_theta", 10_000.0)
        said["rope_scaling"] = _llama3(base, np.asarray(tensors[ROPE_FACTORS]), file)
    return said


def _llama3(base: float, factors: np.ndarray, file: Path) -> dict[str, Any]:
    """HF's `rope_scaling` of what each of d / 2 frequencies is divided by. Raises WeightsError
    where that is not Llama 3.1's scaling with `LLAMA3`."""
    scaling = LLAMA3 | {"rope_type": "llama3", "factor": float(factors.max())}
    options = RopeOptions(**rope.from_hf({"rope_theta": base, "rope_scaling": scaling}, str(file)))
    width = 2 * factors.size
    expected = frequencies(width, base, np) / options.frequencies(width, np)
    if not np.allclose(expected, factors, rtol=1e-3):
        raise WeightsError(
            f"{file} divides its rotary frequencies by other factors ({ROPE_FACTORS}) than Llama"
            f" 3.1's scaling does with {LLAMA3}: take this model's Hugging Face folder instead."
        )
    return scaling


def _short(value: Any) -> Any:
    """Numbers are float32 in the file: 9.999999747378752e-06 was written as 1e-05."""
    return float(np.format_float_positional(np.float32(value))) if type(value) is float else value
