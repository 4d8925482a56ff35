"""What a run takes by the TPU's own compiler: `doctor --plan CONFIG --compile v5e:2x4`.

The programs of the curriculum and of its evaluation are compiled for a TPU that is not here. What
each holds is the compiler's figure, and so is a refusal; FLOPs, bytes and messages are counted in
its text (`runtime.program_text`). For a program that does not fit, settings are tried, through the
compiler as well.
"""

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from rmt_jax.config import Config, ConfigError, update
from rmt_jax.models import costs, platform
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime import program_text
from rmt_jax.runtime.hardware import GIB, Chip, needed_memory
from rmt_jax.runtime.topology import Topology
from rmt_jax.training import plan, programs, step_costs

CONTINUED = 32  # tokens of an answer that is generated
REFUSED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of")
Change = dict[str, object]  # settings by dotted names
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
HOPELESS = 1.3  # times the room: what the plan puts above it is not tried
HEADS = ("GiB/chip", "arguments", "temporaries", "planned", "FLOPs", "GB moved", "messages")
HEADS += ("MB received", "ms", "of peak")


class Compiled(NamedTuple):
    """What the compiler says of a program, a device."""

    arguments: int  # bytes
    temporaries: int
    needed: int  # both, and what comes back elsewhere
    counts: program_text.Counts
    spent: float  # seconds that it took

    def seconds(self, chip: Chip) -> float:
        """The least that it takes: all products at the chip's peak, all bytes at its memory's
        bandwidth, or all messages at that of its links, and nothing waits for anything else."""
        counts = self.counts
        times = (counts.flops / chip.flops, counts.moved / chip.bandwidth)
        return max(*times, counts.received / chip.links)


class Refused(NamedTuple):
    """A program that the compiler refuses for its size."""

    needed: int  # bytes a device; 0: the compiler does not say


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a config. kind: a function of `training.programs`. stage: its number."""

    kind: str
    stage: int = 0
    segments: int = 0

    def title(self, config: Config, devices: int) -> str:
        if self.kind == "training":
            return f"training, {config.stages[self.stage].batch} texts of {self.segments} segments"
        if self.kind == "validation":
            return f"validation, {config.evaluation.batch} texts of {self.segments} segments"
        texts = _texts(config, sharding.mesh_sizes(config.mesh, devices))
        after = {"reading": "a segment", "answering": "a token", "generation": "a drawn token"}
        return f"{self.kind}, {texts} texts, {after[self.kind]}"

    def shape(self, config: Config) -> costs.Shape:
        stage = config.stages[self.stage]
        shape = plan.shape_of(config, stage, self.segments)
        return shape if self.kind == "training" else shape._replace(batch=config.evaluation.batch)

    def trace(self, config: Config, vocab: int, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
        make = getattr(programs, self.kind)
        if self.kind in ("training", "validation"):
            probes = config.stages[self.stage].probes
            return make(config, vocab, mesh, self.shape(config), probes)
        texts = _texts(config, (mesh.shape["data"], mesh.shape["fsdp"], 1))
        rest = {"reading": (), "answering": (plan.ANSWER,), "generation": (CONTINUED,)}
        return make(config, vocab, mesh, texts, *rest[self.kind])

    def planned(self, config: Config, vocab: int, devices: int) -> float:
        """Bytes a device, as the plan without compiling has them; 0 where it has none."""
        sizes = sharding.mesh_sizes(config.mesh, devices)
        if self.kind == "training":
            return step_costs.step_memory(config, self.shape(config), vocab, sizes, tpu=True).total
        return 0.0


def of_config(config: Config) -> list[Program]:
    """Programs of a curriculum and its evaluation: for each kind of batch the longest, and that of
    one segment, which keeps more of it. Lengths between take the same loop with fewer turns."""
    kinds: dict[tuple[object, ...], tuple[int, set[int]]] = {}
    for number, stage in enumerate(config.stages):
        if stage.steps:
            key = (stage.batch, stage.dense, stage.probes)
            kinds.setdefault(key, (number, set()))[1].update(stage.buckets)
    if not kinds:
        raise ConfigError("Every stage has steps=0: nothing is trained, and nothing compiled.")
    found = [
        Program("training", number, segments)
        for number, lengths in kinds.values()
        for segments in sorted({min(lengths), max(lengths)}, reverse=True)
    ]
    number, lengths = max(kinds.values(), key=lambda kind: max(kind[1]))
    found.append(Program("validation", number, max(lengths)))
    return found + [Program(kind) for kind in ("reading", "answering", "generation")]


def compile_for(config: Config, vocab: int, program: Program, tpu: Topology) -> Compiled | Refused:
    """Compiles a program of a config for a TPU. Raises ConfigError where its mesh does not fit, and
    what the compiler raises, but for want of memory."""
    mesh = sharding.make_mesh(config.mesh, tpu.devices)
    start = time.monotonic()
    with platform.compiling_for("tpu"):
        lowered = program.trace(config, vocab, mesh).lower(lowering_platforms=("tpu",))
        try:
            made = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Refused(refused_bytes(str(error)))
    memory = made.memory_analysis()
    assert memory is not None  # libtpu says it
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        needed_memory(made) or 0,
        program_text.Program(made.as_text() or "").count(),
        time.monotonic() - start,
    )


def refused_bytes(sentence: str) -> int:
    """What a program would need, of the compiler's refusal; 0 where it does not say."""
    found = REFUSED.search(sentence)
    if found is None:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * UNITS[unit])


def changes(config: Config, program: Program, devices: int) -> Iterator[Change]:
    """Settings that a program may fit with, by dotted names, those first that cost least."""
    shared: list[Change] = [
        {"mesh.fsdp": n, "mesh.data": -1} for n in _divisors(devices, config.mesh.fsdp)
    ]
    if program.kind != "training":
        yield from shared
        size = config.evaluation.batch
        while size > 1:
            size //= 2
            yield {"evaluation.batch": size}
        return
    remat: Change = {} if config.model.remat else {"model.remat": True}
    if remat:
        yield remat
    batch, old = config.stages[program.stage].batch, config.optimizer.accumulate
    parts = [n for n in _divisors(batch, old) if n % old == 0]
    yield from (remat | {"optimizer.accumulate": n} for n in parts)
    yield from (remat | one for one in shared)
    yield from (remat | one | {"optimizer.accumulate": n} for one in shared[-1:] for n in parts)
    while batch > 1:
        batch //= 2
        smaller = {
            f"stages.{i}.batch": batch for i, s in enumerate(config.stages) if s.batch > batch
        }
        yield remat | smaller


def fitting(
    config: Config, vocab: int, program: Program, tpu: Topology, needed: int
) -> tuple[Change, Compiled] | None:
    """The first of `changes` with which the compiler takes a program that it refuses, of `needed`
    bytes, as it stands."""
    devices = len(tpu.devices)
    before = program.planned(config, vocab, devices)
    for change in changes(config, program, devices):
        changed = update(config, change)
        try:
            mesh = sharding.make_mesh(changed.mesh, tpu.devices)
            sharding.check_batches(changed, mesh)
            if before:
                share = program.planned(changed, vocab, devices) / before
                if needed * share > HOPELESS * tpu.chip.room:
                    continue
            found = compile_for(changed, vocab, program, tpu)
        except ConfigError:  # the mesh does not divide batches or weights
            continue
        if isinstance(found, Compiled):
            return change, found
    return None


def show(config: Config, vocab: int, tpu: Topology) -> int:
    """Prints what the compiler says, a line a program as it is ready. Returns 1 where one does not
    fit, else 0. Raises ConfigError where mesh and batches do not fit the devices."""
    devices, chip = len(tpu.devices), tpu.chip
    mesh = sharding.make_mesh(config.mesh, tpu.devices)
    sharding.check_batches(config, mesh)
    sizes = " · ".join(f"{axis}={n}" for axis, n in mesh.shape.items())
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    print(
        f"{config.model.cell}, {costs.count_weights(config, vocab):,} weights; compiled for"
        f" {tpu.name}: {devices} devices ({sizes}), {chip.room / GIB:.2f} GiB each, by"
        f" {', '.join(versions)}\n"
    )
    print(f"{'program':46}" + "".join(f"{head:>12}" for head in HEADS), flush=True)
    refused = []
    for program in of_config(config):
        title = program.title(config, devices)
        planned = program.planned(config, vocab, devices)
        found = compile_for(config, vocab, program, tpu)
        if isinstance(found, Compiled):
            print(_line(title, found, planned, chip), flush=True)
            continue
        refused.append(title)
        size = f"{found.needed / GIB:.2f} GiB" if found.needed else "more"
        print(f"{title}: does not fit, it needs {size} of {chip.room / GIB:.2f} GiB", flush=True)
        way = fitting(config, vocab, program, tpu, found.needed)
        if way is None:
            print("  no remat, accumulation, fsdp or batch was found that makes it fit: more chips")
            continue
        words = " ".join(f"--config.{name}={_said(value)}" for name, value in way[0].items())
        print(f"  it fits with {words}:")
        print(_line(f"  {title}", way[1], 0.0, chip), flush=True)
    print(
        "\nGiB/chip: arguments, temporaries and results; planned: without compiling. ms: the least,"
        " by the chip's peak (bfloat16) and the bandwidths of its memory and of its links to other"
        " chips; of peak: what that leaves of it. No time for messages between slices. Loops whose"
        " turns only a run knows count once."
    )
    return int(bool(refused))


def _line(title: str, found: Compiled, planned: float, chip: Chip) -> str:
    counts, seconds = found.counts, found.seconds(chip)
    cells = [
        *(f"{n / GIB:.2f}" for n in (found.needed, found.arguments, found.temporaries)),
        f"{planned / GIB:.2f}" if planned else "",
        f"{counts.flops:.3g}",
        f"{counts.moved / 1e9:.2f}",
        f"{counts.messages:.0f}",
        f"{counts.received / 1e6:.1f}",
        f"{1e3 * seconds:.2f}",
        f"{100 * counts.flops / chip.flops / seconds:.0f} %" if seconds else "",
    ]
    return f"{title:46}" + "".join(f"{cell:>12}" for cell in cells)


def _texts(config: Config, sizes: sharding.Sizes) -> int:
    """Texts of an evaluation side by side: as many as fill the devices alike."""
    ways = sizes[0] * sizes[1]
    return -(-config.evaluation.batch // ways) * ways


def _divisors(number: int, above: int) -> list[int]:
    return [n for n in range(above + 1, number + 1) if number % n == 0]


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
