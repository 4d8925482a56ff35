"""The whole model on one page: GPT-2 and the Recurrent Memory Transformer in plain JAX.

Read this first. It computes what `models.recurrent` and `models.recurrence` compute for
`backbone=gpt2`, `cell=rmt` with a task prompt in every segment, from the same weights, and it is
what the tests hold them to. It has no scan, no rematerialisation, no packing of padding, no fused
operation and no bfloat16.

One letter, one dimension: B texts, S segments, L tokens per segment, M memory tokens, P prompt
tokens, N = M + P + L + M places, D width, H heads, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Params = Mapping[str, Any]  # nested dicts, as `models.split` gives them


def read_text(
    params: Params,
    heads: int,
    tokens: Int[Array, "B S L"],
    mask: Bool[Array, "B S L"],
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
) -> tuple[Float[Array, "B S L V"], Float[Array, "B M D"]]:
    """Logits of every token, and the memory after the text."""
    memory = initial_memory(params, len(tokens))
    logits = []
    for s in range(tokens.shape[1]):
        segment, known = tokens[:, s], mask[:, s]
        hidden, new = read_segment(params, heads, memory, segment, known, prompt, prompt_mask)
        logits.append(hidden @ params["backbone"]["wte"].T)
        # A segment that is all padding leaves a text's memory as it is.
        memory = jnp.where(known.any(axis=1)[:, None, None], new, memory)
    return jnp.stack(logits, axis=1), memory


def initial_memory(params: Params, batch: int) -> Float[Array, "B M D"]:
    """The learned memory tokens, the same for every text."""
    tokens = params["memory"]["tokens"]
    return jnp.broadcast_to(tokens, (batch, *tokens.shape))


def read_segment(
    params: Params,
    heads: int,
    memory: Float[Array, "B M D"],
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
) -> tuple[Float[Array, "B L D"], Float[Array, "B M D"]]:
    """Hidden states of the segment's tokens, and the next memory.

    The same memory stands in front, where the tokens read it, and behind, where it has seen them
    all and becomes the next memory.
    """
    backbone, size = params["backbone"], memory.shape[1]
    embedding, real = backbone["wte"], jnp.ones(memory.shape[:2], bool)
    x = jnp.concatenate([memory, embedding[prompt], embedding[tokens], memory], axis=1)
    known = jnp.concatenate([real, prompt_mask, mask, real], axis=1)
    positions = jnp.maximum(jnp.cumsum(known, axis=1) - 1, 0)  # padding takes up no position
    x = x + backbone["wpe"][positions]
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    visible = causal & known[:, None, :]
    layers = len(backbone["blocks"]["qkv"]["bias"])
    for layer in range(layers):
        weights = jax.tree.map(lambda stacked, layer=layer: stacked[layer], backbone["blocks"])
        x = block(weights, heads, x, visible)
    x = layer_norm(x, backbone["ln_f"])
    return x[:, -size - tokens.shape[1] : -size], x[:, -size:]


def block(
    weights: Params, heads: int, x: Float[Array, "B N D"], visible: Bool[Array, "B N N"]
) -> Float[Array, "B N D"]:
    """One layer of GPT-2: attention, then a feed-forward network, each beside the residual."""
    x = x + attention(weights, heads, layer_norm(x, weights["ln_1"]), visible)
    inner = jax.nn.gelu(linear(layer_norm(x, weights["ln_2"]), weights["up"]), approximate=True)
    return x + linear(inner, weights["down"])


def attention(
    weights: Params, heads: int, x: Float[Array, "B N D"], visible: Bool[Array, "B N N"]
) -> Float[Array, "B N D"]:
    """Softmax attention of H heads over the visible places."""
    batch, places, width = x.shape
    qkv = linear(x, weights["qkv"]).reshape(batch, places, 3, heads, width // heads)
    queries, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bnhd,bkhd->bhnk", queries, keys) / (width // heads) ** 0.5
    scores = jnp.where(visible[:, None], scores, -1e30)
    mixed = jnp.einsum("bhnk,bkhd->bnhd", jax.nn.softmax(scores, axis=-1), values)
    return linear(mixed.reshape(batch, places, width), weights["out"])


def linear(x: Float[Array, "... I"], weights: Params) -> Float[Array, "... O"]:
    return x @ weights["kernel"] + weights["bias"]


def layer_norm(x: Float[Array, "... D"], weights: Params) -> Float[Array, "... D"]:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * weights["scale"] + weights["bias"]
