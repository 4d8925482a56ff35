"""The diagonal schedule against the sequential one: ARMT, one text, reading and training.

    python benchmarks/diagonal.py [--layers 12 --width 768 --segment 1024 --tokens 65536]

Defaults: GPT-2's shape and 65k tokens on an accelerator (what the schedule's authors measured:
160M weights, 1.72 s sequential, 0.451 s diagonal), a small model on a CPU. Rounds alternate;
medians with least and most; writes benchmarks/diagonal.md.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rmt_jax import models
from rmt_jax.config import Config, Model, Prompt, Stage
from rmt_jax.models import schedule
from rmt_jax.training import optimizer, step
from rmt_jax.types import Batch

OUT = Path(__file__).with_name("diagonal.md")
VOCAB = 1024  # nothing here makes many logits


def text(rows: int, segments: int, length: int) -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (rows, segments, length)).astype(np.int32)
    return Batch(
        tokens=tokens,
        mask=np.ones(tokens.shape, bool),
        prompt=np.zeros((rows, 0), np.int32),
        prompt_mask=np.zeros((rows, 0), bool),
        task=np.zeros(rows, np.int32),
        answer_start=np.full((rows, 1, 1), length - 3, np.int32),
        answer=np.ones((rows, 1, 1, 2), np.int32),
        weight=np.ones((rows, 1, 1, 2), np.float32),
        metric_row=np.zeros((rows, 1, 1), np.int32),
    )


def prepared(model: Model, batch: Batch):
    """Compiled (read, train) for one schedule, each a call without arguments that waits."""
    config = Config(
        model=model,
        prompt=Prompt(source="none"),
        stages=(Stage(batch.tokens.shape[1], 10, len(batch.task), 1e-5),),
    )
    built = models.build(config.model, config.prompt, VOCAB, 1, nnx.Rngs(0))
    graph, params = models.split(built)
    opt = optimizer.build(config, built.weights())
    batch = jax.device_put(batch)
    state = jax.device_put(step.init_state(params, opt))
    count = jax.numpy.int32(batch.tokens.shape[1])

    @jax.jit
    def read(params, batch):
        module = models.merge(graph, params)
        memory = module.initial(len(batch.task))
        return schedule.read_some(module, memory, batch.tokens, batch.mask, None, count)

    train = jax.jit(step.make_train_step(graph, opt, 2, bptt=0, remat=model.remat))
    weights = sum(x.size for x in jax.tree.leaves(params))
    return weights, {
        "reading": lambda: jax.block_until_ready(read(params, batch)),
        "train step": lambda: jax.block_until_ready(train(state, batch)),
    }


def main() -> None:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--layers", type=int, default=4 if cpu else 12)
    add("--width", type=int, default=128 if cpu else 768)
    add("--segment", type=int, default=128 if cpu else 1024)
    add("--tokens", type=int, default=4096 if cpu else 65_536)
    add("--batch", type=int, default=1)
    add("--rounds", type=int, default=7)
    args = parser.parse_args()

    batch = text(args.batch, args.tokens // args.segment, args.segment)
    ready, weights = {}, 0
    for order in ("sequential", "diagonal"):
        model = Model(
            cell="armt",
            layers=args.layers,
            width=args.width,
            heads=args.width // 64 if args.width >= 128 else 2,
            max_positions=args.segment + 16,
            segment_tokens=args.segment,
            schedule=order,
        )
        weights, ready[order] = prepared(model, batch)
    spent: dict[tuple[str, str], list[float]] = {}
    for number in range(args.rounds + 1):
        for order, calls in ready.items():
            for what, call in calls.items():
                start = time.perf_counter()
                call()
                if number:  # the first one compiles
                    spent.setdefault((what, order), []).append(time.perf_counter() - start)

    device = jax.devices()[0]
    name = f"{os.cpu_count()} cores of {platform.machine()}" if cpu else device.device_kind
    lines = [
        "# The diagonal schedule\n",
        f"`python benchmarks/diagonal.py --layers {args.layers} --width {args.width} --segment"
        f" {args.segment} --tokens {args.tokens} --batch {args.batch} --rounds {args.rounds}` on"
        f" {name}, jax {jax.__version__}: ARMT, {weights:,} weights,"
        f" {'float32' if cpu else 'bfloat16'}. Seconds, median (least-most); the gain is"
        " sequential over diagonal, round by round.\n",
        "| | sequential | diagonal | gain |\n|---|---|---|---|",
    ]
    for what in ("reading", "train step"):
        one, other = spent[what, "sequential"], spent[what, "diagonal"]
        gains = [a / b for a, b in zip(one, other, strict=True)]
        cells = [
            f"{statistics.median(x):.3f} ({min(x):.3f}-{max(x):.3f})" for x in (one, other, gains)
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
