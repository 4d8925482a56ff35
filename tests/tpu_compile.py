"""Compiles our programs for TPUs that aren't there: `python tests/tpu_compile.py [--write] [NAME]`.

Needs `pip install 'rmt_jax[tpu]'` on Python 3.12 or later, and no TPU: libtpu is the TPU's own
compiler. Prints what each program holds, computes, moves and says to other chips; --write records
it in tests/tpu_counts.json, which `test_tpu.py` compares with. NAME: parts of a case's name.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from rmt_jax import config
from rmt_jax.models import platform
from rmt_jax.models.costs import Shape
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime import program_text, topology
from rmt_jax.training import programs

RECORD = Path(__file__).with_name("tpu_counts.json")
VOCAB, LENGTH, TEXTS, SEGMENTS = 1000, 64, 16, 4
CELLS = ("none", "rmt", "prmt", "armt", "delta", "kv")
BACKBONES = ("gpt2", "llama", "gemma3", "neox")
PROGRAMS = ("training", "validation", "reading", "answering", "generation")


@dataclasses.dataclass(frozen=True)
class Case:
    """A program of a small model on a TPU; `mesh`: data, fsdp, tensor on each slice's chips."""

    cell: str = "rmt"
    backbone: str = "gpt2"
    program: str = "training"
    tpu: str = "v5e:2x2"
    mesh: tuple[int, int, int] = (4, 1, 1)
    slices: int = 1
    segments: int = SEGMENTS
    texts: int = TEXTS
    changes: tuple[tuple[str, Any], ...] = ()  # of the config, by dotted names

    @property
    def name(self) -> str:
        sizes = zip(sharding.AXES, self.mesh, strict=True)
        mesh = " ".join(f"{axis} {size}" for axis, size in sizes if size > 1) or "one chip"
        parts = [self.backbone, self.cell, self.program, f"{self.segments} segments", mesh]
        parts.append(self.tpu if self.slices == 1 else f"{self.slices}x {self.tpu}")
        parts += [f"{self.texts} text"] * (self.texts != TEXTS)
        return ", ".join([*parts, *(f"{n}={v}" for n, v in self.changes)])


def cases() -> list[Case]:
    """Every cell, backbone, program, mesh and TPU, each beside a usual choice of the others."""
    few, meshes = ("rmt", "delta"), ((1, 4, 1), (1, 1, 4), (2, 1, 2), (1, 2, 2))
    found = [Case(cell, program=program) for cell in CELLS for program in ("training", "reading")]
    found += [Case(cell, program=program) for cell in few for program in PROGRAMS]
    found += [Case("delta", b, program=p) for b in BACKBONES[1:] for p in ("training", "answering")]
    found += [Case(cell, mesh=mesh) for cell in few for mesh in meshes]
    found += [Case(cell, mesh=meshes[0]) for cell in CELLS]
    found += [Case("delta", "llama", p, mesh=meshes[0]) for p in ("validation", "reading")]
    found += [Case("delta", "llama", p, mesh=meshes[1]) for p in ("answering", "generation")]
    kinds = (("v6e:2x2", 4), ("v5p:2x2x1", 4), ("tpu7x:2x2x1", 8))
    found += [Case("delta", tpu=tpu, mesh=(n, 1, 1)) for tpu, n in kinds]
    found += [Case(cell, mesh=(8, 1, 1), slices=2) for cell in ("rmt", "armt", "delta")]
    found += [Case("delta", mesh=(2, 4, 1), slices=2)]
    found += [Case(cell, segments=4 * SEGMENTS) for cell in ("rmt", "armt", "delta")]
    # Places enough for the attention kernel, with heads by themselves and grouped.
    long = (("model.segment_tokens", 384), ("model.max_positions", 512))
    found += [Case(changes=long), Case("armt", "llama", changes=long)]
    found += [Case("rmt", mesh=mesh, changes=long) for mesh in ((1, 4, 1), (2, 1, 2))]
    found.append(Case(changes=(("optimizer.accumulate", 2),)))
    found.append(Case("delta", changes=(("model.remat", False),)))
    # Three of the chips have a layer each.
    found += [Case(cell, program="reading", texts=1) for cell in ("armt", "delta")]
    return list(dict.fromkeys(found))


def settings(case: Case) -> config.Config:
    made = config.Config(
        model=config.Model(
            cell=case.cell,
            backbone=case.backbone,
            layers=3,
            width=256,
            heads=4,
            positions="learned" if case.backbone == "gpt2" else "rotary",
            max_positions=128,
            segment_tokens=LENGTH,
            memory_tokens=4 if case.cell in ("rmt", "prmt", "armt") else 0,
            d_mem=32,
            cell_options={"slots": 32} if case.cell == "kv" else {},
        ),
        prompt=config.Prompt("description", "every", 8),
        data=config.Data(tasks=("qa1",)),
        stages=(config.Stage(case.segments, 10, TEXTS, 1e-3),),
        mesh=config.Mesh(*case.mesh),
    )
    return config.update(made, dict(case.changes))


def traced(case: Case) -> jax.stages.Traced:
    about = settings(case)
    devices = topology.describe(case.tpu, case.slices).devices
    mesh = sharding.make_mesh(about.mesh, devices)
    if case.program in ("training", "validation"):
        make = getattr(programs, case.program)
        return make(about, VOCAB, mesh, Shape(case.texts, case.segments, 1, 1, 2))
    rest = () if case.program == "reading" else (8,)
    return getattr(programs, case.program)(about, VOCAB, mesh, case.texts, *rest)


def compiled(case: Case) -> jax.stages.Compiled:
    with platform.compiling_for("tpu"):
        return traced(case).lower(lowering_platforms=("tpu",)).compile()


def figures(program: jax.stages.Compiled) -> dict[str, float]:
    """What must not grow."""
    text = program_text.Program(program.as_text() or "")
    counts, memory = text.count(), program.memory_analysis()
    return {
        "FLOPs": counts.flops,
        "bytes moved": counts.moved,
        "temporary bytes": memory.temp_size_in_bytes,
        "collectives": counts.messages,
        "bytes between chips": counts.sent,
    }


def version() -> str:
    """What the record is of: counts are a compiler's."""
    libtpu = importlib.metadata.version("libtpu").split(".")
    return f"jax {'.'.join(jax.__version__.split('.')[:2])}, libtpu {'.'.join(libtpu[:3])}"


def main(words: list[str]) -> None:
    wanted = [word for word in words if word != "--write"]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    own = dict(record.get(version(), {}))
    for case in cases():
        if wanted and not all(word in case.name for word in wanted):
            continue
        own[case.name] = figures(compiled(case))
        print(f"{case.name}: {json.dumps(own[case.name])}", flush=True)
    if "--write" in words:
        names = {case.name for case in cases()}
        record[version()] = {name: found for name, found in own.items() if name in names}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
