"""Attention, in one function, in one place; and the bias of ALiBi.

Plain products, on a CPU in blocks of queries, except where a fused kernel serves (`chosen`):
cuDNN's on NVIDIA GPUs, JAX's splash kernel on TPUs (`splash`).
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rmt_jax.models import platform
from rmt_jax.models.context import AttentionContext, KVCache
from rmt_jax.models.ops import splash
from rmt_jax.models.ops.positions import gather_positions

# Finite, so that a query that may see nothing (padding) gives numbers and not NaN.
HIDDEN = -1e30
# What a hidden key says in its extra column: JAX's own figure for cuDNN, far from overflow.
HIDDEN_KEY = -float(2 << 40)
BLOCK = 96  # queries that look at their keys together on a CPU
EXTRA = 8  # columns that carry the mask: one would do, but cuDNN wants multiples of eight


def chosen(
    platform: str, capability: str, dtype: Any, shape: tuple[int, ...], causal: bool, biased: bool
) -> str:
    """'cudnn', 'splash' or 'xla' for one call; pure, so that it can be tested without the device.

    A TPU's kernel takes what a causal mask and unknown keys hide, in bfloat16 or float32, from
    `splash.LEAST` places on: below that plain products stay in the chip's own memory.

    cuDNN (the checks of JAX 0.10.2, jax/_src/cudnn/fused_attention_stablehlo.py): an NVIDIA GPU
    from Ampere on (capability 8.0), float16 or bfloat16, heads of a multiple of 8 up to 128 wide
    (256 from Hopper, 9.0, on), an even number of places (JAX refuses odd ones while training, with
    or without a bias). We use its plain causal kernel alone. With an array of biases it reads
    [B, H, N, K] and writes a gradient as large, which is what a fused kernel should spare; so what
    has a bias (ALiBi) goes to XLA.

    Args:
      platform: of the device, 'cpu', 'gpu', 'tpu'.
      capability: of an NVIDIA GPU, such as '9.0' (an AMD GPU says 'gfx90a'); else ''.
      shape: of the queries, [B, N, H, d].
      causal: places see all known keys that are not behind them, nothing else hides anything.
    """
    if platform == "tpu":
        return "splash" if causal and not biased and shape[1] >= splash.LEAST else "xla"
    number = capability.replace(".", "", 1)
    if platform != "gpu" or not number.isdigit() or biased or not causal:
        return "xla"
    version = float(capability)
    most = 256 if version >= 9 else 128
    half = jnp.dtype(dtype) in (jnp.float16, jnp.bfloat16)
    fits = shape[-1] % 8 == 0 and shape[-1] + EXTRA <= most and shape[1] % 2 == 0
    return "cudnn" if version >= 8 and half and fits else "xla"


def available(dtype: Any, shape: tuple[int, ...], causal: bool, biased: bool) -> str:
    """`chosen` for the device that JAX runs on; plain products where a mesh is split by hand along
    one axis and by the compiler along another, for which JAX can't compile its call of cuDNN."""
    if platform.current() == "tpu":
        return chosen("tpu", "", dtype, shape, causal, biased)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and any(mesh.shape[name] > 1 for name in mesh.auto_axes):
        return "xla"
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return chosen(platform.current(), capability, dtype, shape, causal, biased)


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None = None,
    known: jax.Array | None = None,
    packed: bool = False,
) -> jax.Array:
    """Softmax attention; scores and softmax in float32 whatever the inputs are.

    queries [B, N, H, d]; keys, values [B, K, G, d], where H is a multiple of G: H / G query heads
    in a row share a key-value head (grouped-query attention, Ainslie et al. 2023). visible
    bool[B, N, K]; bias f32[B, H, N, K] is added to the scores. known bool[B, K] is given where
    `visible` is causal & known[:, None]: what a fused kernel needs to hear. packed: unknown keys
    stand behind all known ones, where no known place sees them. Returns [B, N, H, d] in the dtype
    of `values`.
    """
    fused = available(queries.dtype, queries.shape, known is not None, bias is not None)
    if fused == "cudnn" and known is not None:
        return causal(queries, keys, values, None if packed else known, fused)
    if fused == "splash" and known is not None and splash.serves(queries.shape, keys.shape[2]):
        return splash.attend(queries, keys, values, known)
    if known is not None and platform.current() == "cpu":
        return in_blocks(queries, keys, values, visible, bias)
    return plain(queries, keys, values, visible, bias)


def attend_segment(
    queries: jax.Array,
    here: KVCache,
    context: AttentionContext,
    cache: KVCache | None = None,
    query_positions: jax.Array | None = None,
    fused: bool = True,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attend` of a layer: queries [B, n, H, d] at `query_positions` i32[B, n], or at all places,
    look at the keys of these places, `here`, and at those of earlier ones in `cache`.

    bias f32[B, H, N, K]: of all places. fused: a fused kernel may serve.
    """
    keys, values, visible = here.keys, here.values, context.visible
    if cache is not None:
        keys = jnp.concatenate([cache.keys, keys], axis=1)
        values = jnp.concatenate([cache.values, values], axis=1)
    if query_positions is not None:
        visible = gather_positions(visible, query_positions)
        if bias is not None:
            bias = gather_positions(bias.swapaxes(1, 2), query_positions).swapaxes(1, 2)
    # With a cache, or at some places only, what is visible is not the causal triangle.
    whole = fused and context.causal and cache is None and query_positions is None
    known = context.mask if whole else None
    return attend(queries, keys, values, visible, bias, known, context.packed)


def in_blocks(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`plain` where no place sees a later one, about BLOCK queries at a time, without the keys that
    stand behind them: half of the work, in pieces that a core's cache holds."""
    places = queries.shape[1]
    count = max(1, round(places / BLOCK))
    edges = [round(i * places / count) for i in range(count + 1)]
    parts = []
    for start, stop in itertools.pairwise(edges):
        some = None if bias is None else bias[:, :, start:stop, :stop]
        seen = visible[:, start:stop, :stop]
        part = (queries[:, start:stop], keys[:, :stop], values[:, :stop])
        parts.append(plain(*part, seen, some))
    return jnp.concatenate(parts, axis=1)


def plain(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attend` by two products, on any device."""
    # Heads in front, the scale on the queries, the division after the product: a third less time
    # on a CPU than softmax between two einsums (benchmarks/RESULTS.md).
    queries, keys, values = (x.swapaxes(1, 2) for x in (queries, keys, values))
    batch, heads, places, width = queries.shape
    groups, known = keys.shape[1:3]
    # The queries that share keys stand below each other: one product, and no copy of the keys.
    rows = places * heads // groups
    queries = (queries * width**-0.5).reshape(batch, groups, rows, width)
    scores = jnp.einsum("bhnd,bhkd->bhnk", queries, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, places, known)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(visible[:, None], scores, HIDDEN)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bhnk,bhkd->bhnd",
        weights.astype(values.dtype).reshape(batch, groups, rows, known),
        values,
        preferred_element_type=jnp.float32,
    )
    mixed = mixed.reshape(batch, heads, places, values.shape[-1])
    return (mixed / total).astype(values.dtype).swapaxes(1, 2)


def attention_weights(
    queries: jax.Array, keys: jax.Array, visible: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """The softmax itself, f32[B, H, N, K]: `plain` with the identity for values."""
    batch, known, groups = keys.shape[:3]
    eye = jnp.eye(known, dtype=jnp.float32)[None, :, None, :]
    values = jnp.broadcast_to(eye, (batch, known, groups, known))
    return jnp.swapaxes(plain(queries, keys, values, visible, bias), 1, 2)


def causal(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    known: jax.Array | None,
    implementation: str,
) -> jax.Array:
    """`attend` where only the future and unknown keys are hidden, by `jax.nn`'s function. Without
    `known` the future alone.

    Unknown keys (padding stands in the middle: behind the prompt, behind the text) are hidden by
    columns of the keys, which every query reads with weight one, and not by a mask: so the kernel
    stays the plain causal one. Exact: a known key's column is zero.
    """
    width = queries.shape[-1]
    fused = partial(
        jax.nn.dot_product_attention,
        scale=width**-0.5,
        is_causal=True,
        implementation=implementation,  # pyright: ignore
    )
    if known is None:
        return fused(queries, keys, values)
    rest = ((0, 0), (0, 0), (0, 0), (0, EXTRA))
    column = jnp.where(known, 0, HIDDEN_KEY).astype(keys.dtype)[:, :, None, None]
    column = jnp.broadcast_to(column, (*keys.shape[:3], 1))
    keys = jnp.pad(jnp.concatenate([keys, column], axis=-1), (*rest[:3], (0, EXTRA - 1)))
    out = fused(jnp.pad(queries, rest, constant_values=1), keys, jnp.pad(values, rest))
    return out[..., :width]


def alibi(
    heads: int, query_positions: jax.Array, key_positions: jax.Array, counted: jax.Array
) -> jax.Array:
    """Bias of ALiBi (Press et al. 2022): minus slope times distance; slopes 2^(-8 (h+1) / H).

    Positions i32[B, N] and i32[B, K]; counted bool[N, K] is False between places that have no
    distance: memory tokens stand near everything, else a long segment would hide the read memory
    from its last tokens, and its first tokens from the write memory. Returns f32[B, H, N, K].
    """
    slopes = 2.0 ** (-8.0 * (jnp.arange(heads) + 1) / heads)
    distance = (query_positions[:, :, None] - key_positions[:, None, :]) * counted
    return -slopes[None, :, None, None] * distance[:, None].astype(jnp.float32)
