"""What a compiled program does, read from its text: products, bytes, messages between devices.

XLA's own cost analysis counts the body of a loop once and arrays without the padding of their
tiles, and it does not say what stays on the chip. Here a loop counts as often as it turns, an array
has the bytes that its tiles take, and only what passes between the chip and its memory (HBM) is
counted as moved: by XLA's rules, so that a fusion that reads a slice reads no more than that.
`tests/test_tpu.py` holds both to each other where no loop turns twice.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"\b(?:calls|to_apply)=%([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{|true_computation=|false_computation=)[^}=]*")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# How often a chip must hear of each byte: of a sum, of all parts of its own share, and of the sums
# of the others' shares.
TOLD = {"all-reduce": 2.0}
# Kernels of attention, which say nothing of their work, and how many products of [N, d] with [d, N]
# they make for each head: two forward, and five backward, where the scores are made again.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
# What moves nothing, or is counted where it begins.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id opt-barrier add-dependency domain".split()
)


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


@dataclasses.dataclass
class Counts:
    """Of one run of a program on one device."""

    flops: float = 0.0  # of products
    wide_flops: float = 0.0  # of these, of products of float32 numbers
    moved: float = 0.0  # bytes between the chip and its memory
    messages: float = 0.0  # collectives
    sent: float = 0.0  # bytes of what they give back
    received: float = 0.0  # bytes that other chips of the slice must tell a chip for it
    looped: float = 0.0  # of the messages, those inside loops
    across: float = 0.0  # bytes that go to another slice
    open_loops: int = 0  # whose turns are not known before they run: counted once

    def plus(self, other: "Counts", times: float = 1.0) -> None:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            once = field.name == "open_loops"
            setattr(self, field.name, mine + theirs * (1 if once else times))


class Program:
    """The computations of a compiled module. text: `jax.stages.Compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry, current = "", ""
        for line in text.splitlines():
            if line.endswith("{") and " -> " in line and not line.startswith(" "):
                found = NAME.search(line)
                assert found is not None, line[:200]
                current = found[1]
                self.computations[current] = {}
                if line.startswith("ENTRY"):
                    self.entry = current
            elif line.startswith(" ") and " = " in line and current:
                one = _instruction(line)
                self.computations[current][one.name] = one
                if line.lstrip().startswith("ROOT "):
                    self.roots[current] = one

    def count(self, loops: bool = True) -> Counts:
        """loops: whether a loop counts as often as it turns."""
        return self._count(self.entry, loops)

    def stored(self) -> Iterator[Array]:
        """Every array that stands in HBM or the chip's memory between two instructions; what is
        inside a fusion never does."""
        for name in self._run(self.entry):
            for one in self.computations[name].values():
                if one.opcode not in FREE:
                    yield from one.arrays

    def products(self) -> Iterator[tuple[float, Array, Array]]:
        """FLOPs and factors of each product, loops counted once."""
        for computation in self.computations.values():
            for one in computation.values():
                if one.opcode in ("dot", "convolution"):
                    left, right = (computation[name].out for name in one.operands[:2])
                    yield _product(one, left, right), left, right

    def turns(self, loop: Instruction, computation: str) -> int | None:
        """How often a while loop runs; None where only the run itself decides."""
        if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.said):  # not on a TPU
            return int(told[1])
        condition = _attribute(loop.said, "condition")
        root, inside = self.roots[condition], self.computations[condition]
        if root.opcode != "compare" or "direction=LT" not in root.said:
            return None
        first, last = (self._number(inside[name], loop, computation) for name in root.operands)
        step = self._step(loop, inside[root.operands[0]])
        if last is None or step is None:
            return None
        return max(0, -(-(last - (first or 0)) // step))

    def _step(self, loop: Instruction, counter: Instruction) -> int | None:
        """By how much a turn moves the counter of a loop's condition: two where the compiler put
        two turns into one."""
        body = _attribute(loop.said, "body")
        root, inside = self.roots[body], self.computations[body]
        if counter.opcode != "get-tuple-element" or root.opcode != "tuple":
            return None
        moved = inside[root.operands[int(_attribute(counter.said, "index"))]]
        while moved.opcode in ("copy", "bitcast"):
            moved = inside[moved.operands[0]]
        added = [inside[name] for name in moved.operands if inside[name].opcode == "constant"]
        if moved.opcode != "add" or len(added) != 1:
            return None
        return self._number(added[0], loop, body)

    def _number(self, one: Instruction, loop: Instruction, computation: str) -> int | None:
        """The value of a scalar of a loop's condition as the loop begins, if it is known."""
        if one.opcode == "get-tuple-element":
            index = int(_attribute(one.said, "index"))
            outside = self.computations[computation]
            start = outside.get(loop.operands[0])
            if start is None or start.opcode != "tuple":
                return None
            one = outside[start.operands[index]]
            while one.opcode in ("copy", "bitcast"):
                one = outside[one.operands[0]]
        if one.opcode != "constant":
            return None
        found = re.match(r"\((-?\d+)\)", one.said)
        return int(found[1]) if found else None

    def _run(self, name: str) -> set[str]:
        """Computations that run as themselves, and not inside a fusion."""
        found = {name}
        for one in self.computations[name].values():
            for inner in _inner(one):
                found |= self._run(inner)
        return found

    def _count(self, name: str, loops: bool) -> Counts:
        total, own = Counts(), self.computations[name]
        for one in own.values():
            if one.opcode == "while":
                turns = self.turns(one, name) if loops else 1
                body = self._count(_attribute(one.said, "body"), loops)
                body.looped = body.messages
                total.plus(body, 1 if turns is None else turns)
                total.open_loops += turns is None
            elif one.opcode in ("conditional", "call"):
                branches = [self._count(inner, loops) for inner in _inner(one)]
                total.plus(max(branches, key=lambda c: (c.flops, c.moved)))
            else:
                total.plus(self._one(one, name))
        return total

    def _one(self, one: Instruction, computation: str) -> Counts:
        counts, own = Counts(), self.computations[computation]
        if one.opcode in FREE or one.opcode.endswith("-done"):
            return counts
        arrays = self._results(one)
        counts.moved = float(sum(self._written(one, own, i) for i in arrays))
        for place, name in enumerate(one.operands):
            if name in own:
                counts.moved += self._read(one, place, own[name])
        self._products(one, computation, counts)
        return counts

    def _results(self, one: Instruction) -> list[int]:
        """Which of its arrays an instruction makes: an asynchronous one's also tell of others."""
        if one.opcode == "copy-start":
            return [0]
        if one.opcode.endswith("-start") and len(one.arrays) > 1:
            given = len(one.operands)
            return list(range(given, min(2 * given, len(one.arrays))))
        return list(range(len(one.arrays)))

    def _products(self, one: Instruction, computation: str, counts: Counts) -> None:
        """Adds products and messages of an instruction and of what it fuses."""
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            counts.messages += 1
            given = sum(one.arrays[i].held for i in self._results(one))
            counts.sent += given
            if kind == "reduce-scatter":
                own = self.computations[computation]
                given = sum(own[name].out.held for name in one.operands)
            counts.received += given * TOLD.get(kind, 1.0) * _others(one.said)
        elif kind == "send":
            counts.across += one.out.held
        elif kind in ("dot", "convolution"):
            own = self.computations[computation]
            left, right = (own[name].out for name in one.operands[:2])
            flops = _product(one, left, right)
            counts.flops += flops
            counts.wide_flops += flops * (left.dtype == "f32" and right.dtype == "f32")
        elif kind == "custom-call":
            times = next((n for name, n in KERNELS.items() if one.name.startswith(name)), 0)
            counts.flops += times * 2.0 * one.out.size * one.out.shape[-2] if times else 0.0
        elif kind in ("fusion", "async"):
            for inner in CALLED.findall(one.said):
                for part in self.computations[inner].values():
                    self._products(part, inner, counts)

    def _read(self, one: Instruction, place: int, operand: Instruction) -> float:
        """Bytes that an instruction reads of its operand number `place` in HBM."""
        array = operand.out
        if array.inside or len(operand.arrays) != 1:
            return 0.0
        if one.opcode in ("fusion", "async-start"):
            return self._read_inside(_attribute(one.said, "calls"), place, array.held)
        return self._used(one, place, array.held)

    def _used(self, one: Instruction, place: int, whole: int) -> float:
        if one.opcode in ("slice", "dynamic-slice", "gather", "slice-start") and place == 0:
            made = one.arrays[1] if one.opcode == "slice-start" else one.out
            return min(whole, made.held)
        if one.opcode in ("dynamic-update-slice", "scatter") and place == 0:
            return 0.0  # in place
        return whole

    def _read_inside(self, name: str, place: int, whole: int) -> float:
        """The same of parameter number `place` of a fused computation."""
        own = self.computations[name]
        given = [p for p in own.values() if p.opcode == "parameter"]
        given = [p for p in given if p.said.startswith(f"({place})")]
        return self._uses(name, given[0].name, whole) if given else whole

    def _uses(self, name: str, given: str, whole: int) -> float:
        total = 0.0
        for one in self.computations[name].values():
            for place, operand in enumerate(one.operands):
                if operand != given:
                    continue
                if one.opcode == "fusion":
                    total += self._read_inside(_attribute(one.said, "calls"), place, whole)
                elif one.opcode in ("bitcast", "reshape") and one != self.roots[name]:
                    total += self._uses(name, one.name, whole)
                else:
                    total += self._used(one, place, whole)
                if total >= whole:
                    return whole
        return min(total, whole)

    def _written(self, one: Instruction, own: dict[str, Instruction], index: int) -> float:
        """Bytes that go to HBM of result number `index`."""
        array = one.arrays[index]
        if array.inside:
            return 0.0
        if one.opcode == "fusion":
            root = self.roots[_attribute(one.said, "calls")]
            return min(array.held, self._made(_attribute(one.said, "calls"), root, index))
        if one.opcode == "dynamic-update-slice":
            return own[one.operands[1]].out.held
        return array.held

    def _made(self, name: str, one: Instruction, index: int = 0) -> float:
        """Bytes of what a fused computation's root writes."""
        own = self.computations[name]
        if one.opcode == "tuple":
            return self._made(name, own[one.operands[index]])
        if one.opcode in ("bitcast", "reshape") and one.operands[0] in own:
            return self._made(name, own[one.operands[0]])
        if one.opcode == "fusion":
            inner = _attribute(one.said, "calls")
            return self._made(inner, self.roots[inner], index)
        if one.opcode == "dynamic-update-slice":
            return own[one.operands[1]].out.held
        return one.arrays[index if len(one.arrays) > 1 else 0].held


def _others(said: str) -> float:
    """Which part of a collective's chips are others, by its groups: 7/8 of eight."""
    if "source_target_pairs=" in said:
        return 1.0
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", said):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        chips = math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    elif found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", said):
        chips = int(found[1])
    elif found := re.search(r"replica_groups=\{\{([\d,]+)\}", said):
        chips = len(found[1].split(","))
    else:  # all chips, of which one is few
        return 1.0
    return 1.0 - 1.0 / chips


def _inner(one: Instruction) -> list[str]:
    """Computations that an instruction runs as they stand."""
    if one.opcode == "while":
        return [_attribute(one.said, "body")]
    if one.opcode == "conditional":
        return [name for part in BRANCHES.findall(one.said) for name in NAME.findall(part)]
    return CALLED.findall(one.said) if one.opcode == "call" else []


def _attribute(said: str, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", said)
    assert found is not None, f"no {name}= in {said[:200]}"
    return found[1]


def _instruction(line: str) -> Instruction:
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


def _product(one: Instruction, left: Array, right: Array) -> float:
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


def largest(arrays: Iterator[Array], count: int = 5) -> list[Array]:
    """The largest of them, for a reader."""
    return list(itertools.islice(sorted(set(arrays), key=lambda a: -a.held), count))
