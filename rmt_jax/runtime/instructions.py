"""One instruction of a compiled program, read from its line: arrays, operands, FLOPs of a product.

`program_text` counts with them what a whole program does.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """An array of the program."""

    dtype: str
    shape: tuple[int, ...]
    held: int  # bytes, with what its tiles are padded by
    inside: bool  # in the chip's own memory, not in HBM

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Instruction(NamedTuple):
    """One line of the text."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of its result, tuples flattened
    operands: tuple[str, ...]
    said: str  # what stands in its parentheses, and behind them

    @property
    def out(self) -> Array:
        return self.arrays[0]


def attribute(said: str, name: str) -> str:
    """The name or number that stands behind `name=` in what an instruction says."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", said)
    assert found is not None, f"no {name}= in {said[:200]}"
    return found[1]


def instruction(line: str) -> Instruction:
    """Of a line `%name = type[shape]{layout} opcode(operands), attributes`."""
    line = re.sub(r"/\*.*?\*/", "", line)
    name, rest = line.split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, said = rest[end:].lstrip().split("(", 1)
    said = "(" + said
    inside = said[: _closing(said, 0)]
    arrays = tuple(_array(*found.groups("")) for found in ARRAY.finditer(rest[:end]))
    return Instruction(
        name.split("%")[-1].strip(), opcode, arrays, tuple(NAME.findall(inside)), said
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"A parenthesis stays open in {text[:200]}")


@functools.lru_cache(maxsize=65_536)
def _array(dtype: str, sizes: str, layout: str) -> Array:
    shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,*]+)\)", rest)
    padded = list(shape)
    if tile and shape and "*" not in tile[1]:
        minor = [int(axis) for axis in order.split(",")] if order else []
        for axis, size in zip(minor, reversed([int(n) for n in tile[1].split(",")]), strict=False):
            padded[axis] = -(-padded[axis] // size) * size
    space = re.search(r"S\((\d+)\)", rest)
    bits = re.match(r"[a-z]+(\d+)", dtype)
    size = 8 if dtype == "pred" or bits is None else int(bits[1])
    return Array(dtype, shape, math.prod(padded) * size // 8, bool(space and space[1] != "0"))


def product_flops(one: Instruction, left: Array, right: Array) -> float:
    """FLOPs of a dot or a convolution, a multiply and an add each; what falls on padding and on the
    holes of a dilated factor is no work (XLA writes products of many heads as such)."""
    if one.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.said)
        held = [left.shape[int(axis)] for axis in axes[1].split(",") if axis] if axes else []
        return 2.0 * one.out.size * math.prod(held)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.said)
    assert labels is not None, one.said[:200]
    work = one.out.shape[labels[3].index("b")]
    work *= right.shape[labels[2].index("o")] * right.shape[labels[2].index("i")]
    for axis, label in enumerate(sorted(c for c in labels[1] if c.isdigit())):
        sizes = (left.shape[labels[1].index(label)], one.out.shape[labels[3].index(label)])
        work *= _meetings(one.said, axis, *sizes)
    return 2.0 * work


def _meetings(said: str, axis: int, inputs: int, outputs: int) -> int:
    """Pairs of an output and a place of the kernel along one axis that meet an input."""
    window = re.search(r"window=\{([^}]*)\}", said)
    parts = dict(part.split("=") for part in window[1].split()) if window else {}

    def part(name: str, default: str) -> str:
        return parts[name].split("x")[axis] if name in parts else default

    low = int(part("pad", "0_0").split("_")[0])
    stride, holes, gaps = (int(part(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    kernel = np.arange(int(part("size", "1"))) * gaps - low  # where it lies for the first output
    if holes == 1:
        return _inside(stride, kernel, inputs, outputs)
    if stride == 1:
        return _inside(holes, -kernel, outputs, inputs)
    at = np.add.outer(np.arange(outputs) * stride, kernel)
    return int(((at >= 0) & (at <= (inputs - 1) * holes) & (at % holes == 0)).sum())


def _inside(step: int, starts: np.ndarray, end: int, count: int) -> int:
    """How many of start, start + step, … (`count` of them for each start) are in [0, end)."""
    first = np.maximum(0, -(starts // step))
    last = np.minimum(count - 1, (end - 1 - starts) // step)
    return int(np.maximum(0, last - first + 1).sum())
