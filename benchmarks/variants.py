"""Our train step and reading in variants, without contenders: what a setting is worth.

    python -m benchmarks.variants [--size base] [--read 1,8,32] [--profile] [VARIANT ...]

A VARIANT is settings of `config.Model` and `texts`, `segments`, `tokens` (of a segment) and
`kernels` (false: not our own ones): `texts=16,segments=4,remat=true`. All train steps are compiled
side by side, then timed one after another: the median of seven steps; model FLOPs utilisation, of
what the model needs and as is usually counted (`costs.train_flops`, against the peak in
`hardware`); temporary memory.
`--read` reads that many texts side by side, 256 segments. `--profile` adds where the time of a step
goes, by kernel, from JAX's profiler (a GPU).
"""

import argparse
import collections
import glob
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import jax

from benchmarks.cases import SIZES, Size, texts
from benchmarks.ours import Ours, config_of
from rmt_jax import api, config
from rmt_jax.models import costs
from rmt_jax.models.ops import kernels
from rmt_jax.runtime import hardware
from rmt_jax.runtime import mesh as sharding

DEFAULTS = (
    "texts=16,segments=4",
    "texts=16,segments=4,remat=true",
    "texts=16,segments=4,attention=xla",
    "texts=64,segments=1",
)
ROUNDS, SEGMENTS = 7, 256


class Variant(NamedTuple):
    """A train step that is traced, and what it is called on."""

    name: str
    tokens: int
    flops: float  # that the model needs, a step
    whole: float  # as usually counted
    lowered: jax.stages.Lowered
    state: Any
    batch: Any


def traced(name: str, size: Size) -> Variant:
    """Raises ConfigError for a setting that there is not."""
    told: dict[str, Any] = {}
    for part in name.split(","):
        field, _, value = part.partition("=")
        told[field] = value
    own = told.pop("kernels", "true") != "false"
    try:
        rows, segments = int(told.pop("texts", 16)), int(told.pop("segments", 4))
        tokens = int(told.pop("tokens", size.segment))
    except ValueError as error:
        raise config.ConfigError(f"{name}: texts, segments, tokens are whole numbers.") from error
    most = size.positions - 2 * size.memory
    if not 0 < tokens <= most:
        raise config.ConfigError(f"{name}: tokens must be 1 to {most}, beside the memory tokens.")
    size = replace(size, segment=tokens)
    values: dict[str, Any] = {
        f"model.{k}": {"true": True, "false": False}.get(v, int(v) if v.isdigit() else v)
        for k, v in told.items()
    }
    settings = config.update(config_of(size), values)
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    program, state, batch = Ours().step(settings, size, segments, rows, mesh)
    with mock.patch.object(kernels, "ready", kernels.ready if own else lambda x: False):
        lowered = program.lower(state, batch)
    needed, whole = (costs.train_flops(settings, way) * batch.tokens.size for way in (False, True))
    return Variant(name, batch.tokens.size, needed, whole, lowered, state, batch)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call, the median; the first is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return median(found[1:])


def training(names: list[str], size: Size, profile: bool) -> None:
    peak = hardware.peak(jax.devices()[0])
    variants = [traced(name, size) for name in names]

    def compiled(variant: Variant) -> tuple[jax.stages.Compiled, float]:
        start = time.perf_counter()
        return variant.lowered.compile(), time.perf_counter() - start

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = list(pool.map(compiled, variants))
    print("| variant | ms a step | tokens/s | MFU, % (usual) | temporary GiB | compiled in s |")
    print("|---|---|---|---|---|---|")
    for (program, wait), variant in zip(programs, variants, strict=True):
        state = variant.state

        def once(program=program, batch=variant.batch):
            nonlocal state
            state, sums = program(state, batch)
            return sums

        took = timed(once)
        shares = [100 * flops / took / peak for flops in (variant.flops, variant.whole) if peak]
        share = "{:.1f} ({:.1f})".format(*shares) if peak else ""
        memory = program.memory_analysis()
        held = f"{memory.temp_size_in_bytes / 2**30:.1f}" if memory else ""
        print(
            f"| {variant.name} | {1000 * took:.1f} | {variant.tokens / took:,.0f} | {share}"
            f" | {held} | {wait:.0f} |",
            flush=True,
        )
        if profile:
            profiled(once)


def profiled(call: Callable[[], Any], most: int = 25) -> None:
    """Prints the kernels of one call on a GPU, those of one name together."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        file = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]
        spent: collections.Counter[str] = collections.Counter()
        count: collections.Counter[str] = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    name = event.name.rstrip("0123456789_")[:60]
                    spent[name] += int(event.duration_ns)
                    count[name] += 1
    print(f"\n{sum(spent.values()) / 1e6:.1f} ms in {sum(count.values()):,} kernels:")
    for name, nanoseconds in spent.most_common(most):
        print(f"  {nanoseconds / 1e6:8.2f} ms {count[name]:6,} x {name}")
    print()


def reading(rows: list[int], size: Size) -> None:
    settings = config_of(size)
    model = api.Model(settings, Ours()._model(settings, size.vocab)[1])
    print("\n| texts | ms a segment | s a text of 1M tokens |\n|---|---|---|")
    for count in rows:
        tokens, start = texts(size, SEGMENTS, count).tokens, model.initial_memory(count)
        took = timed(lambda start=start, tokens=tokens: model.read(start, tokens)) / SEGMENTS
        whole = took * 2**20 / size.segment / count
        print(f"| {count} | {1000 * took:.3f} | {whole:.3f} |", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--read", default="", help="texts side by side, e.g. 1,8,32")
    parser.add_argument("--profile", action="store_true", help="kernels of a step (a GPU)")
    parser.add_argument("variants", nargs="*", help=f"default: {' '.join(DEFAULTS)}")
    args = parser.parse_args(words)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {args.size}\n")
    if args.variants or not args.read:
        try:
            training(args.variants or list(DEFAULTS), SIZES[args.size], args.profile)
        except config.ConfigError as error:
            sys.exit(str(error))
    if args.read:
        reading([int(word) for word in args.read.split(",")], SIZES[args.size])


if __name__ == "__main__":
    main()
