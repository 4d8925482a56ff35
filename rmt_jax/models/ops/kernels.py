"""The switch between plain and fused block operations, and the fused ones.

`block_ops` is the one place that decides: on an NVIDIA GPU that holds the whole array, with
`jax_triton` installed (extras `cuda12`, `cuda13`), Triton kernels do what stands between a layer's
products in one pass over memory each; everywhere else `ops.block.PLAIN` serves. They make 6 to 7 %
of GPT-2 base's train step on an H200 (benchmarks/H200.md).

Each kernel works on groups of rows, [G, R, D] with vectors [G, D]: one group, or one per layer
under `jax.vmap` over stacked layers (`models.diagonal`). Sums over rows come back as a few partial
sums.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from rmt_jax.models import platform
from rmt_jax.models.ops import block

TILE = 4096  # elements of a row block that a program holds at once
PROGRAMS = 132 * 4  # that sums over rows are split into: four for each multiprocessor of an H200
WIDEST = 8192  # a row must fit into one program's registers
LEAST = 4096  # rows; with fewer, waiting for one more launch costs more than a pass over memory


def block_ops(x: jax.Array) -> block.BlockOps:
    """The operations of a block whose input is x [..., D]: fused where they serve, else plain."""
    return FUSED if ready(x) else block.PLAIN


def ready(x: jax.Array) -> bool:
    """Whether the kernels serve for x [..., D]: on an NVIDIA GPU with `jax_triton` installed, in a
    program that runs on one device (the compiler can't split them) or through a `shard_map` that
    has split it already."""
    width = x.shape[-1]
    if platform.current() != "gpu" or width > WIDEST or x.size < max(1, LEAST) * width:
        return False
    if jnp.dtype(x.dtype) not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        whole = jax.device_count() == 1
    else:
        manual = set(mesh.manual_axes)
        whole = all(size == 1 or name in manual for name, size in mesh.shape.items())
    return whole and _compiler() is not None


@cache
def _compiler() -> Any:
    """The module `triton_kernels`, or None where Triton or an NVIDIA GPU is missing."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if not capability.replace(".", "", 1).isdigit() or float(capability) < 8:
        return None
    try:
        import jax_triton  # noqa: F401

        from rmt_jax.models.ops import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def grouped(kernel: Callable[..., list[jax.Array]]) -> Callable[..., list[jax.Array]]:
    """`kernel` of arrays [G, ...], called on arrays without the G, also under one `jax.vmap`."""

    @custom_vmap
    def call(*arrays: jax.Array) -> list[jax.Array]:
        return [x[0] for x in kernel(*(x[None] for x in arrays))]

    @call.def_vmap
    def rule(size: int, batched: list[bool], *arrays: jax.Array):
        whole = [
            x if own else jnp.broadcast_to(x, (size, *x.shape))
            for x, own in zip(arrays, batched, strict=True)
        ]
        out = kernel(*whole)
        return out, [True] * len(out)

    return call


def _places(x: jax.Array) -> jax.Array:
    """[G, ..., D] -> [G, R, D]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _like(x: jax.Array, shape: tuple[int, ...] | None = None, dtype: Any = None):
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, dtype or x.dtype)


def _tiles(rows: int, width: int) -> dict[str, int]:
    """The constants that a kernel over rows is compiled for."""
    wide = 1 << (width - 1).bit_length()
    return {"R": rows, "D": width, "WIDE": wide, "TILE": max(1, TILE // wide)}


def _stretches(groups: int, rows: int, tile: int, columns: int = 1) -> tuple[int, int]:
    """Programs a group, and the rows of each, a multiple of `tile`."""
    programs = max(1, min(-(-rows // tile), PROGRAMS // (groups * columns)))
    stretch = -(-rows // (programs * tile)) * tile
    return -(-rows // stretch), stretch


@grouped
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> list[jax.Array]:
    """LayerNorm of x [G, ..., D] by f32[G, D]: y like x, mean and slope f32[G, ...]."""
    groups, rows, width = _places(x).shape
    tiles = _tiles(rows, width)
    kept = _like(x, x.shape[:-1], jnp.float32)
    out, grid = (_like(x), kept, kept), (-(-rows // tiles["TILE"]), groups)
    return _compiler().call("normalise", (x, scale, bias), out, grid, tiles)


@grouped
def add_normalise(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
) -> list[jax.Array]:
    """`normalise` of x + change + shift, of f32[G, D]: the sum like x, then as there."""
    groups, rows, width = _places(x).shape
    tiles = _tiles(rows, width)
    kept = _like(x, x.shape[:-1], jnp.float32)
    out = (_like(x), _like(x), kept, kept)
    grid = (-(-rows // tiles["TILE"]), groups)
    return _compiler().call("add_normalise", (x, change, shift, scale, bias), out, grid, tiles)


@grouped
def normalise_gradient(
    x: jax.Array,
    mean: jax.Array,
    slope: jax.Array,
    scale: jax.Array,
    gradient: jax.Array,
    own: jax.Array,
) -> list[jax.Array]:
    """The gradient for x of LayerNorm, whose result had `gradient`, and of x itself, which had
    `own`, both like x. Also three sums over rows, as partial sums f32[G, P, D]: for scale, for
    bias and of the gradient for x."""
    groups, rows, width = _places(x).shape
    tiles = _tiles(rows, width)
    tiles["TILE"] = max(1, tiles["TILE"] // 2)
    programs, stretch = _stretches(groups, rows, tiles["TILE"])
    sums = _like(x, (groups, programs, width), jnp.float32)
    arrays = (x, mean, slope, scale, gradient, own)
    out = (_like(x), sums, sums, sums)
    grid = (programs, groups)
    return _compiler().call("normalise_gradient", arrays, out, grid, tiles | {"STRETCH": stretch})


@grouped
def gelu_gradient(x: jax.Array, gradient: jax.Array) -> list[jax.Array]:
    """The gradient for x of gelu(x), [G, ..., D], and its sums over rows as partial sums
    f32[G, P, D]."""
    groups, rows, width = _places(x).shape
    wide = min(512, 1 << (width - 1).bit_length())
    columns, tile = -(-width // wide), max(1, TILE // wide)
    programs, stretch = _stretches(groups, rows, tile, columns)
    sums = _like(x, (groups, programs, width), jnp.float32)
    sizes = {"R": rows, "D": width, "WIDE": wide, "TILE": tile, "STRETCH": stretch}
    grid = (columns, programs, groups)
    return _compiler().call("gelu_gradient", (x, gradient), (_like(x), sums), grid, sizes)


@grouped
def join(first: jax.Array, second: jax.Array, third: jax.Array) -> list[jax.Array]:
    """Three arrays [G, ..., D] side by side, [G, ..., 3 D], and the sums over its rows as partial
    sums f32[G, P, 3 D]."""
    groups, rows, width = _places(first).shape
    tiles = _tiles(rows, width)
    programs, stretch = _stretches(groups, rows, tiles["TILE"], 3)
    whole = _like(first, (*first.shape[:-1], 3 * width))
    sums = _like(first, (groups, programs, 3 * width), jnp.float32)
    grid = (3, programs, groups)
    arrays = (first, second, third)
    return _compiler().call("join", arrays, (whole, sums), grid, tiles | {"STRETCH": stretch})


@jax.custom_vjp
def _prenorm(x: jax.Array, scale: jax.Array, bias: jax.Array):
    return block.PLAIN.prenorm(x, scale, bias)


def _prenorm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    y, mean, slope = normalise(x, scale, bias)
    return (x, y), (x, mean, slope, scale)


def _prenorm_backward(kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]):
    own, gradient = gradients
    back, *sums = normalise_gradient(*kept, gradient, own)
    return (back, *(part.sum(axis=0) for part in sums[:2]))


_prenorm.defvjp(_prenorm_forward, _prenorm_backward)
_add_layer_norm = jax.custom_vjp(block.PLAIN.add_layer_norm)


def _add_forward(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
):
    total, y, mean, slope = add_normalise(x, change, shift, scale, bias)
    return (total, y), (total, mean, slope, scale)


def _add_backward(kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]):
    own, gradient = gradients
    back, *sums = normalise_gradient(*kept, gradient, own)
    scale, bias, shift = (part.sum(axis=0) for part in sums)
    return back, back, shift, scale, bias


_add_layer_norm.defvjp(_add_forward, _add_backward)


@jax.custom_vjp
def _bias_gelu(x: jax.Array, shift: jax.Array) -> jax.Array:
    return _bias_gelu_forward(x, shift)[0]


def _bias_gelu_forward(x: jax.Array, shift: jax.Array):
    # The sum is kept, not x: cuBLASLt adds the bias and bends where it multiplies, and gives both.
    total = x + shift.astype(x.dtype)
    return jax.nn.gelu(total, approximate=True), total


def _bias_gelu_backward(total: jax.Array, gradient: jax.Array):
    back, sums = gelu_gradient(total, gradient)
    return back, sums.sum(axis=0)


_bias_gelu.defvjp(_bias_gelu_forward, _bias_gelu_backward)


@jax.custom_vjp
def _split_qkv(x: jax.Array, shift: jax.Array) -> list[jax.Array]:
    return jnp.split(x + shift.astype(x.dtype), 3, axis=-1)


def _split_forward(x: jax.Array, shift: jax.Array):
    return _split_qkv(x, shift), None


def _split_backward(_: None, gradients: list[jax.Array]):
    whole, sums = join(*gradients)
    return whole, sums.sum(axis=0)


_split_qkv.defvjp(_split_forward, _split_backward)

FUSED = block.BlockOps(_prenorm, _add_layer_norm, _bias_gelu, _split_qkv)
