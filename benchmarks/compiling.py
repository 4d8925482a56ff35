"""Time and memory of compiling: over segments, over layers, from the cache, and how often.

    python benchmarks/compiling.py [--rounds 3]        writes benchmarks/compiling.md

Each measurement is a process of its own, so that peaks of memory don't mix; medians over rounds,
with least and most. What compiles is the train step of a small model, for shapes alone: no weight
is drawn and no step runs.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).with_name("compiling.md")
BASE = {"layers": 4, "width": 256, "segments": 4, "scan": True}
SEGMENTS = (1, 4, 32, 256)
LAYERS = (2, 4, 8)


def child(layers: int, width: int, segments: int, scan: bool) -> None:
    """Compiles once; prints seconds and megabytes as JSON."""
    import jax
    import jax.numpy as jnp

    from rmt_jax import models
    from rmt_jax.config import Config, Model, Prompt, Stage
    from rmt_jax.training import optimizer
    from rmt_jax.training import step as steps
    from rmt_jax.types import Batch

    rows, length = 8, 128
    config = Config(
        model=Model(
            cell="rmt", layers=layers, width=width, heads=4, segment_tokens=length,
            scan_layers=scan, dtype="float32",
        ),
        prompt=Prompt(source="none"),
        stages=(Stage(segments, 10, rows, 1e-3),),
    )  # fmt: skip
    graph, params, infos = models.outline(config.model, config.prompt, 1024)[:3]
    opt = optimizer.build(config, infos)
    state = jax.eval_shape(lambda: steps.init_state(params, opt))

    def array(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    batch = Batch(
        tokens=array(rows, segments, length),
        mask=array(rows, segments, length, dtype=jnp.bool_),
        prompt=array(rows, 0),
        prompt_mask=array(rows, 0, dtype=jnp.bool_),
        task=array(rows),
        answer_start=array(rows, 1, 1),
        answer=array(rows, 1, 1, 2),
        weight=array(rows, 1, 1, 2, dtype=jnp.float32),
        metric_row=array(rows, 1, 1),
    )
    step = steps.make_train_step(graph, opt, 2, bptt=0, remat=True)
    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lowered.compile()
    print(
        json.dumps(
            {
                "trace": traced - start,
                "compile": time.perf_counter() - traced,
                "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
            }
        )
    )


def run(changes: dict, cache: str = "") -> dict[str, float]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    words = [sys.executable, __file__, "--child", json.dumps(BASE | changes)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr.strip()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], pattern: str) -> str:
    """Median (least - most)."""
    middle, low, high = (pattern.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low}-{high})"


def line(name: str, found: list[dict[str, float]]) -> str:
    patterns = {"trace": "{:.2f}", "compile": "{:.2f}", "mb": "{:.0f}"}
    cells = [spread([f[key] for f in found], pattern) for key, pattern in patterns.items()]
    return f"| {name} | {' | '.join(cells)} |"


def programs() -> list[str]:
    """How many shapes train step and validation are compiled for, in each preset's curriculum."""
    from rmt_jax import cli
    from rmt_jax.training import plan

    rows = []
    for preset in ("smoke", "small", "gpt2"):
        config = cli.load_config(f"{Path(__file__).parents[1]}/configs/multitask.py:{preset}")
        stages = config.stages
        lengths = [(stage, s) for stage in stages for s in stage.buckets]
        train = {plan.shape_of(config, stage, s) for stage, s in lengths}
        check = {s for _, s in lengths}
        rows.append(f"| {preset} | {len(stages)} | {len(train)} | {len(check)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(**json.loads(args.child))
        return

    head = "| | tracing, s | compiling, s | memory added, MB |\n|---|---|---|---|"
    cases = [(f"{s} segments", {"segments": s}) for s in SEGMENTS]
    for n in LAYERS:
        cases += [
            (f"{n} layers, {'one loop' if scan else 'unrolled'}", {"layers": n, "scan": scan})
            for scan in (True, False)
        ]
    found: dict[str, list[dict[str, float]]] = {name: [] for name, _ in cases}
    cold, warm = [], []
    for _ in range(args.rounds):  # rounds outside: what disturbs, disturbs all cases alike
        for name, changes in cases:
            found[name].append(run(changes))
        with tempfile.TemporaryDirectory() as cache:
            for times in (cold, warm):
                times.append(run({"layers": 8, "scan": False}, cache))
    import jax

    text = [
        "# Compiling\n",
        f"`python benchmarks/compiling.py --rounds {args.rounds}` on {os.cpu_count()} cores of"
        f" {platform.machine()}, jax {jax.__version__}. The train step of {BASE['layers']} layers"
        f" of width {BASE['width']} (one loop), 8 texts of {BASE['segments']} segments of 128"
        " tokens, rematerialised, where nothing else is said; median (least-most).\n",
        "## Over segments\n",
        head,
        *(line(name, found[name]) for name, changes in cases if "segments" in changes),
        "\n## Over layers\n",
        head,
        *(line(name, found[name]) for name, changes in cases if "layers" in changes),
        "\n## From the persistent cache (8 layers, unrolled)\n",
        head,
        line("cold: compiled and written", cold),
        line("warm: read", warm),
        "\n## Programs of one curriculum (configs/multitask.py)\n",
        "One for each shape of batch; `tests/counts.json` has what the smoke preset's loop compiles"
        " in all, small helpers included.\n",
        "| preset | stages | train step | validation |\n|---|---|---|---|",
        *programs(),
    ]
    OUT.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
