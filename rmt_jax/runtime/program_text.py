"""What a compiled program does, read from its text: products, bytes, messages between devices.

XLA's own cost analysis counts the body of a loop once and arrays without the padding of their
tiles, and it does not say what stays on the chip. Here a loop counts as often as it turns, an array
has the bytes that its tiles take, and only what passes between the chip and its memory (HBM) is
counted as moved: by XLA's rules, so that a fusion that reads a slice reads no more than that.
`tests/test_tpu.py` holds both to each other where no loop turns twice.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

from rmt_jax.runtime.instructions import (
    NAME,
    Array,
    Instruction,
    attribute,
    instruction,
    product_flops,
)

CALLED = re.compile(r"\b(?:calls|to_apply)=%([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations=\{|true_computation=|false_computation=)[^}=]*")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Kernels of attention, which say nothing of their work, and how many products of [N, d] with [d, N]
# they make for each head: two forward, and five backward, where the scores are made again.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
# What moves nothing, or is counted where it begins.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id opt-barrier add-dependency domain".split()
)


@dataclasses.dataclass
class Counts:
    """Of one run of a program on one device."""

    flops: float = 0.0  # of products
    wide_flops: float = 0.0  # of these, of products of float32 numbers
    moved: float = 0.0  # bytes between the chip and its memory
    messages: float = 0.0  # collectives
    sent: float = 0.0  # bytes of what they give back
    received: float = 0.0  # bytes that a chip needs from others for them, at the least
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
                one = instruction(line)
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
                    yield product_flops(one, left, right), left, right

    def turns(self, loop: Instruction, computation: str) -> int | None:
        """How often a while loop runs; None where only the run itself decides."""
        if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.said):  # not on a TPU
            return int(told[1])
        condition = attribute(loop.said, "condition")
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
        body = attribute(loop.said, "body")
        root, inside = self.roots[body], self.computations[body]
        if counter.opcode != "get-tuple-element" or root.opcode != "tuple":
            return None
        moved = inside[root.operands[int(attribute(counter.said, "index"))]]
        while moved.opcode in ("copy", "bitcast"):
            moved = inside[moved.operands[0]]
        added = [inside[name] for name in moved.operands if inside[name].opcode == "constant"]
        if moved.opcode != "add" or len(added) != 1:
            return None
        return self._number(added[0], loop, body)

    def _number(self, one: Instruction, loop: Instruction, computation: str) -> int | None:
        """The value of a scalar of a loop's condition as the loop begins, if it is known."""
        if one.opcode == "get-tuple-element":
            index = int(attribute(one.said, "index"))
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
                body = self._count(attribute(one.said, "body"), loops)
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
            # A sum is made in two parts: each chip sums its share, then gathers those of all.
            times = 2.0 if kind == "all-reduce" else 1.0
            counts.received += times * given * _share_of_others(one.said)
        elif kind == "send":
            counts.across += one.out.held
        elif kind in ("dot", "convolution"):
            own = self.computations[computation]
            left, right = (own[name].out for name in one.operands[:2])
            flops = product_flops(one, left, right)
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
            return self._read_inside(attribute(one.said, "calls"), place, array.held)
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
                    total += self._read_inside(attribute(one.said, "calls"), place, whole)
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
            root = self.roots[attribute(one.said, "calls")]
            return min(array.held, self._made(attribute(one.said, "calls"), root, index))
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
            inner = attribute(one.said, "calls")
            return self._made(inner, self.roots[inner], index)
        if one.opcode == "dynamic-update-slice":
            return own[one.operands[1]].out.held
        return one.arrays[index if len(one.arrays) > 1 else 0].held


def _share_of_others(said: str) -> float:
    """The part of an array that a chip's group has without it: 7/8 in a group of eight."""
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
        return [attribute(one.said, "body")]
    if one.opcode == "conditional":
        return [name for part in BRANCHES.findall(one.said) for name in NAME.findall(part)]
    return CALLED.findall(one.said) if one.opcode == "call" else []


def largest(arrays: Iterator[Array], count: int = 5) -> list[Array]:
    """The largest of them, for a reader."""
    return list(itertools.islice(sorted(set(arrays), key=lambda a: -a.held), count))
