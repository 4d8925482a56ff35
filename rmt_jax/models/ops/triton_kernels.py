"""The Triton code of `ops.kernels`: rows of D elements, R a group, TILE rows at a time.

The second or third axis of the grid is the group. All arithmetic is in float32.
"""

from typing import Any

import jax
import triton
import triton.language as tl

from rmt_jax.models.ops.block import CUBIC, EPSILON, ROOT

_EPSILON, _CUBIC, _ROOT = tl.constexpr(EPSILON), tl.constexpr(CUBIC), tl.constexpr(ROOT)
WARPS = 4


def call(name: str, arrays: Any, out: Any, grid: Any, sizes: dict[str, Any]) -> list[jax.Array]:
    """Runs the kernel of that name: arrays in, arrays of shapes and dtypes `out` back."""
    import jax_triton  # not before: without JAX's own GPU support it can't be imported

    kernel = KERNELS[name]
    return jax_triton.triton_call(
        *arrays, kernel=kernel, out_shape=list(out), grid=grid, num_warps=WARPS, name=name, **sizes
    )


@triton.jit
def _tile(start, group, R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    """Rows of the tile that starts at `start`, their offsets, and what of both is real."""
    row = start + tl.arange(0, TILE)
    column = tl.arange(0, WIDE)
    place = group.to(tl.int64) * R + row
    real = (row[:, None] < R) & (column[None, :] < D)
    return place, place[:, None] * D + column[None, :], column, row < R, real


@triton.jit
def _write_normal(
    x, place, at, column, known, real, group, scale, bias, y, mean, slope, D: tl.constexpr
):
    """LayerNorm of a tile of rows x, zero where not real, to `y`, `mean` and `slope`."""
    m = tl.sum(x, axis=1) / D
    apart = tl.where(real, x - m[:, None], 0.0)
    s = tl.rsqrt(tl.sum(apart * apart, axis=1) / D + _EPSILON)
    a = tl.load(scale + group * D + column, mask=column < D, other=0.0)
    b = tl.load(bias + group * D + column, mask=column < D, other=0.0)
    normal = apart * s[:, None] * a[None, :] + b[None, :]
    tl.store(y + at, normal.to(y.dtype.element_ty), mask=real)
    tl.store(mean + place, m, mask=known)
    tl.store(slope + place, s, mask=known)


@triton.jit
def _normalise(
    x, scale, bias, y, mean, slope,
    R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    place, at, column, known, real = _tile(tl.program_id(0) * TILE, group, R, D, WIDE, TILE)
    rows = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    _write_normal(rows, place, at, column, known, real, group, scale, bias, y, mean, slope, D)


@triton.jit
def _add_normalise(
    x, change, shift, scale, bias, total, y, mean, slope,
    R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    place, at, column, known, real = _tile(tl.program_id(0) * TILE, group, R, D, WIDE, TILE)
    rows = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    news = tl.load(change + at, mask=real, other=0.0).to(tl.float32)
    c = tl.load(shift + group * D + column, mask=column < D, other=0.0)
    stored = (rows + news + c[None, :]).to(total.dtype.element_ty)
    tl.store(total + at, stored, mask=real)
    _write_normal(
        stored.to(tl.float32), place, at, column, known, real, group, scale, bias, y, mean, slope, D
    )


@triton.jit
def _normalise_gradient(
    x, mean, slope, scale, gradient, own, back, scales, biases, shifts,
    R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    column = tl.arange(0, WIDE)
    a = tl.load(scale + group * D + column, mask=column < D, other=0.0)
    for_scale = tl.zeros((TILE, WIDE), tl.float32)
    for_bias = tl.zeros((TILE, WIDE), tl.float32)
    for_shift = tl.zeros((TILE, WIDE), tl.float32)
    first = tl.program_id(0) * STRETCH
    for step in range(0, STRETCH, TILE):
        place, at, column, known, real = _tile(first + step, group, R, D, WIDE, TILE)
        rows = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
        inner = tl.load(gradient + at, mask=real, other=0.0).to(tl.float32)
        other = tl.load(own + at, mask=real, other=0.0).to(tl.float32)
        m = tl.load(mean + place, mask=known, other=0.0)
        s = tl.load(slope + place, mask=known, other=0.0)
        normal = tl.where(real, (rows - m[:, None]) * s[:, None], 0.0)
        for_scale += inner * normal
        for_bias += inner
        inner = inner * a[None, :]
        level = tl.sum(inner, axis=1) / D
        along = tl.sum(inner * normal, axis=1) / D
        found = other + s[:, None] * (inner - level[:, None] - normal * along[:, None])
        found = tl.where(real, found, 0.0)
        for_shift += found
        tl.store(back + at, found.to(back.dtype.element_ty), mask=real)
    to = (group * tl.num_programs(0) + tl.program_id(0)) * D + column
    tl.store(scales + to, tl.sum(for_scale, axis=0), mask=column < D)
    tl.store(biases + to, tl.sum(for_bias, axis=0), mask=column < D)
    tl.store(shifts + to, tl.sum(for_shift, axis=0), mask=column < D)


@triton.jit
def _gelu_gradient(
    x, gradient, back, sums,
    R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(2)
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    whole = tl.zeros((TILE, WIDE), tl.float32)
    for step in range(0, STRETCH, TILE):
        row = tl.program_id(1) * STRETCH + step + tl.arange(0, TILE)
        at = (group.to(tl.int64) * R + row)[:, None] * D + column[None, :]
        real = (row[:, None] < R) & (column[None, :] < D)
        exact = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
        incoming = tl.load(gradient + at, mask=real, other=0.0).to(tl.float32)
        square = exact * exact
        # tanh(u) = 2 sigmoid(2u) - 1. Constants stand behind: in front of a tensor, Triton's
        # interpreter took the product for no tensor.
        open = 1 / (1 + tl.exp(exact * (1 + _CUBIC * square) * (-2 * _ROOT)))
        steep = exact * (1 + 3 * _CUBIC * square) * (2 * _ROOT)
        found = incoming * (open + steep * open * (1 - open))
        whole += found
        tl.store(back + at, found.to(back.dtype.element_ty), mask=real)
    to = (group * tl.num_programs(1) + tl.program_id(1)) * D + column
    tl.store(sums + to, tl.sum(whole, axis=0), mask=column < D)


@triton.jit
def _join(
    first, second, third, joined, sums,
    R: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    part, group = tl.program_id(0), tl.program_id(2)
    source = first
    if part == 1:
        source = second
    if part == 2:
        source = third
    column = tl.arange(0, WIDE)
    whole = tl.zeros((TILE, WIDE), tl.float32)
    for step in range(0, STRETCH, TILE):
        start = tl.program_id(1) * STRETCH + step
        place, at, column, known, real = _tile(start, group, R, D, WIDE, TILE)
        rows = tl.load(source + at, mask=real, other=0.0)
        whole += rows.to(tl.float32)
        to = place[:, None] * (3 * D) + part * D + column[None, :]
        tl.store(joined + to, rows, mask=real)
    to = (group * tl.num_programs(1) + tl.program_id(1)) * (3 * D) + part * D + column
    tl.store(sums + to, tl.sum(whole, axis=0), mask=column < D)


KERNELS = {
    "normalise": _normalise,
    "add_normalise": _add_normalise,
    "normalise_gradient": _normalise_gradient,
    "gelu_gradient": _gelu_gradient,
    "join": _join,
}
