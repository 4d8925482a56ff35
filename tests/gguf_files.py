"""Small GGUF files as llama.cpp's converter writes them."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.models.io import hub, weights

gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]' brings gguf")

# What llama.cpp's converter calls the weights of a layer, and ours.
MATRICES = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
NORMS = {
    "attn_norm": "attention_norm", "ffn_norm": "mlp_norm", "attn_q_norm": "query_norm",
    "attn_k_norm": "key_norm",
}  # fmt: skip


def model(width=32, **options) -> tuple[cfg.Model, dict]:
    """A drawn model and its weights by our names below `backbone/`."""
    options = {"kv_heads": 2, "mlp_width": 2 * width, "rope_base": 500.0} | options
    config = tiny.settings(
        backbone="llama", cell="none", layers=2, width=width, heads=4, backbone_options=options
    )
    built = models.build(config, cfg.Prompt("none"), tiny.VOCAB, 1, nnx.Rngs(0))
    flat = {n: np.asarray(v) for n, v in weights.flatten(models.split(built)[1]).items()}
    rng = np.random.default_rng(0)
    flat = {n: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for n, v in flat.items()}
    return config, hub.part_of(flat, "backbone")


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as GGUF's llama has them: i and i + d/2 of a head side by side."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + i + k * half for h in range(heads) for i in range(half) for k in (0, 1)]
    return rows[np.array(order)]


def tensors_of(config: cfg.Model, flat: dict, architecture: str) -> dict[str, np.ndarray]:
    found = {"token_embd.weight": flat["embed_tokens"], "output_norm.weight": flat["norm/scale"]}
    if "head" in flat:
        found["output.weight"] = flat["head"]
    heads = {"attn_q": config.heads, "attn_k": config.backbone_options["kv_heads"]}
    for layer in range(config.layers):
        for theirs, ours in MATRICES.items():
            for part, own in (("weight", "kernel"), ("bias", "bias")):
                if f"blocks/{ours}/{own}" in flat:
                    value = flat[f"blocks/{ours}/{own}"][layer].T
                    if theirs in heads and architecture == "llama":
                        value = in_pairs(value, heads[theirs])
                    found[f"blk.{layer}.{theirs}.{part}"] = value
        for theirs, ours in NORMS.items():
            if f"blocks/{ours}/scale" in flat:
                found[f"blk.{layer}.{theirs}.weight"] = flat[f"blocks/{ours}/scale"][layer]
    return found


def write(
    file: Path,
    config: cfg.Model,
    tensors: dict[str, np.ndarray],
    kinds: dict[str, str] | None = None,
    architecture: str = "llama",
    more=lambda writer: None,
) -> Path:
    """kinds: quantisation of tensors whose name ends so; else F32."""
    options = models.BACKBONES["llama"].options(config)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(options.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(options.kv_heads)
    writer.add_layer_norm_rms_eps(options.norm_epsilon)
    writer.add_rope_freq_base(options.rope_base)
    writer.add_rope_dimension_count(options.head_width)
    more(writer)
    for name, value in tensors.items():
        kind = next((k for end, k in (kinds or {}).items() if name.endswith(end)), "F32")
        kind = gguf.GGMLQuantizationType[kind]
        value = np.ascontiguousarray(value)
        if value.dtype != np.uint8:
            value = gguf.quantize(value, kind)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def with_tokenizer(pre="smollm", kind="gpt2", tokens=tiny.VOCAB):
    """The metadata of a byte-level BPE with the words 'in', ' in' and two control tokens."""

    def more(writer):
        known = ["<|endoftext|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz0123Ġ", "in", "Ġin"]
        known += [f"<x{n}>" for n in range(tokens - len(known))]
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(known)
        writer.add_token_types([3, 3] + [1] * (len(known) - 2))
        writer.add_token_merges(["i n", "Ġ in"])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
        writer.add_chat_template("{{ messages }}")

    return more
