"""What only a GPU can show, in one run of at most six minutes that says yes or no:

    python tests/gpu_check.py [PART ...] [--cells CELL,CELL] [--seconds 360]
    python tests/gpu_check.py --tiny        the same on a CPU: that the script works, nothing more

| part      | what it asks                                                                         |
|-----------|--------------------------------------------------------------------------------------|
| gradients | Those of a train step by the fused kernels (cuDNN's, and ours where `jax-triton` is  |
|           | installed) and by the diagonal schedule, in bfloat16, against exact float32 without  |
|           | them: half again as far off as plain products in bfloat16 are, at most. Other tokens |
|           | behind the padding may move a gradient no further than the same call does when it    |
|           | comes again (a GPU adds up in an order of its own each time; a tenth further passes, |
|           | since such distances are all alike), and the loss not at all.                        |
| llama     | The same of a Llama (RMS norm, rotary positions, grouped queries).                   |
| lora      | The same of its adapters and memory (optimizer.train=lora).                          |
| reading   | One text of 1M tokens, then one of 10M: tokens/s, and memory that stays flat.        |
| cards     | Steps of both backbones and of LoRA compiled for 2 and 8 cards that are not there    |
|           | (`gpu_compile.py`, beside the other parts).                                          |

Prints a table as it goes, then YES or NO, and ends with 1 after a NO. What the time did not suffice
for is a NO. No program for several cards runs: of one card XLA makes no mesh of two, so those
programs are compiled for a description of cards, and what is looked at is their text.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import numpy as np

from rmt_jax import api, config, models
from rmt_jax.models.cells import Memory
from rmt_jax.models.ops import kernels
from rmt_jax.models.schedule import answers
from rmt_jax.training import step as steps
from tests import tiny

# Without it a program of a few layers compiles several times as long, and runs as fast.
GEMM = "--xla_gpu_enable_triton_gemm=false"
PARTS = ("gradients", "llama", "lora", "reading", "cards")
MOST = 1.5
CALLS = 5  # of which two that differ most say how far the same call moves
BLOCK = 64  # segments that are read at once
CASES = ("lora", "llama", "rmt")  # compiled for several cards


class Sizes(NamedTuple):
    """How large all of it is."""

    length: int = (
        57  # tokens of a segment: an even number of places with prompt and memory, cuDNN's
    )
    segments: int = 3
    texts: int = 4
    width: int = 128
    # Of the model that reads.
    read_width: int = 256
    read_layers: int = 4
    read_length: int = 1024
    tokens: tuple[int, int] = (1_000_000, 10_000_000)


GPU = Sizes()
TINY = Sizes(9, 3, 2, 16, 16, 1, 64, (20_000, 200_000))


class Row(NamedTuple):
    """A line of the table."""

    what: str
    found: str
    good: bool


def batch(noise: int, sizes: Sizes = GPU):
    """Texts with ragged segments; what stands behind the mask is drawn from `noise`."""
    texts, segments, length = sizes.texts, sizes.segments, sizes.length
    made = tiny.batch(segments, texts=texts)
    rng, other = np.random.default_rng(0), np.random.default_rng(noise)
    tokens = rng.integers(0, tiny.VOCAB, (texts, segments, length)).astype(np.int32)
    mask = np.arange(length) < rng.integers(length // 3 + 1, length, (texts, segments, 1))
    mask[1, 1] = False  # a segment without a token
    hidden = other.integers(0, tiny.VOCAB, tokens.shape).astype(np.int32)
    return made._replace(tokens=np.where(mask, tokens, hidden), mask=mask)


def model(cell: str, sizes: Sizes, train: str = "all", **changes):
    """A drawn model of these sizes, `tiny.model`'s other settings in `changes`."""
    told = config.Prompt("question", "every", tiny.WORDS)
    lora = config.Lora(rank=4) if train == "lora" else None
    own = dict(
        width=sizes.width, heads=2, max_positions=128, segment_tokens=sizes.length, d_mem=16,
        memory_tokens=4,
    )  # fmt: skip
    if changes.get("backbone") == "llama":
        # Grouped, and of several groups, as `mesh.tensor` splits.
        heads = changes.get("heads", 2)
        changes["backbone_options"] = {"kv_heads": heads // 2, "mlp_width": 2 * sizes.width}
    return tiny.model(told, lora=lora, cell=cell, **(own | changes))


def gradients(cell: str, sizes: Sizes, fused: bool = True, train: str = "all", **changes):
    """A function from a batch to the loss and its gradient by what is trained, as one vector."""
    if not fused:
        changes["attention"] = "xla"
    graph, params = model(cell, sizes, train, **changes)
    trained, frozen = steps.divide(params, config.Optimizer(train=train).trains)

    def loss(trained, texts):
        whole = models.merge(graph, steps.join(trained, frozen))
        logits = whole.backbone.logits(answers(whole, texts, bptt=0, remat=False).hidden)
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    program = jax.jit(jax.value_and_grad(loss))

    def call(texts):
        with mock.patch.object(kernels, "ready", kernels.ready if fused else lambda x: False):
            value, found = program(trained, texts)
        flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found)]
        return float(value), np.concatenate(flat)

    return call


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def compared(cells: Sequence[str], sizes: Sizes, **options) -> Iterator[Row]:
    """The three questions about gradients, of each cell."""
    texts, padded = batch(0, sizes), batch(9, sizes)
    for cell in cells:
        with jax.default_matmul_precision("highest"):
            value, exact = gradients(cell, sizes, False, dtype="float32", **options)(texts)
        plain = gradients(cell, sizes, False, dtype="bfloat16", **options)(texts)[1]
        allowed = MOST * apart(plain, exact)
        for schedule in ("sequential", "diagonal")[: 1 + (cell in ("prmt", "armt"))]:
            call = gradients(cell, sizes, dtype="bfloat16", schedule=schedule, **options)
            same = [call(texts) for _ in range(CALLS)]
            other, moved = call(padded)
            off = apart(same[0][1], exact)
            again = max(apart(a, b) for _, a in same for _, b in same)
            nearest = min(apart(moved, found) for _, found in same)
            good = off < allowed and nearest <= 1.1 * again and other in {loss for loss, _ in same}
            yield Row(
                f"{cell}, {schedule}",
                f"loss {same[0][0]:.5f} ({value:.5f}), off by {off:.1e} ({allowed:.1e} allowed);"
                f" padding moves the loss by {abs(other - same[0][0]):.1e}, the gradient by"
                f" {nearest:.1e} ({again:.1e} from call to call)",
                good,
            )


def host_peak() -> int:
    """Bytes of this process at its most, 0 where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 0


def device_peak() -> int:
    """Bytes of the first device at its most; 0 of a CPU, whose memory is the host's."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def read(cell: str, sizes: Sizes) -> Iterator[Row]:
    """One text, drawn as it is read: 1M tokens and then 10M, which must need no more memory."""
    own = dict(
        cell=cell, width=sizes.read_width, heads=2, layers=sizes.read_layers, positions="alibi",
        segment_tokens=sizes.read_length, memory_tokens=16, d_mem=16, dtype="auto",
    )  # fmt: skip
    settings = config.Config(
        model=tiny.settings(**own), prompt=config.Prompt("none", "every", tiny.WORDS)
    )
    one = api.Model(settings, tiny.model(**own)[1])
    rng, room = np.random.default_rng(0), BLOCK * sizes.read_length

    def some(memory: Memory, count: int) -> Memory:
        tokens = rng.integers(0, tiny.VOCAB, (1, count * sizes.read_length)).astype(np.int32)
        return one.read(memory, tokens)

    jax.block_until_ready(some(one.initial_memory(1), BLOCK))  # compiles
    before: tuple[int, int, float] | None = None
    for tokens in sizes.tokens:
        start, memory = time.monotonic(), one.initial_memory(1)
        for begin in range(0, tokens, room):
            left = -(-min(room, tokens - begin) // sizes.read_length)
            # Waited for, so that blocks do not pile up before a slow device.
            memory = jax.block_until_ready(some(memory, left))
        speed = tokens / (time.monotonic() - start)
        finite = all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(memory))
        device, host = device_peak(), host_peak()
        good = finite
        if before is not None:
            good &= device <= 1.01 * before[0] and host <= before[1] + 2**25
            good &= speed > 0.7 * before[2]
        before = device, host, speed
        yield Row(
            f"{cell}, {tokens:,} tokens",
            f"{speed:,.0f} tokens/s; at most {device / 1e6:,.1f} MB of the device,"
            f" {host / 1e6:,.0f} of the host{'' if finite else '; NOT FINITE'}",
            good,
        )


def compiling(small: bool) -> list[subprocess.Popen]:
    """`gpu_compile.py` in a process for each case, beside the rest: it pretends to have cards."""
    script = str(Path(__file__).with_name("gpu_compile.py"))
    return [
        subprocess.Popen(
            [sys.executable, script, case, "--cards", "2,8", *["--tiny"] * small],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for case in CASES[:1 if small else None]
    ]  # fmt: skip


def cards(processes: Sequence[subprocess.Popen], end: float) -> Iterator[Row]:
    """What they print, by the time `end`."""
    for case, process in zip(CASES, processes, strict=False):
        text, told, late = "", "", False
        try:
            text, told = process.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            text, told = process.communicate()
            late = True
        for line in text.splitlines():
            yield _card_row(line)
        if late:
            yield Row(f"{case}, the rest", "no time was left", False)
        elif process.returncode not in (0, 1) or not text:
            print(told[-2000:], file=sys.stderr)
            yield Row(case, f"gpu_compile.py ended with {process.returncode}", False)


def _card_row(line: str) -> Row:
    what, _, found = line.partition(": ")
    return Row(what, re.sub(": NOT AS IT SHOULD BE$", "", found), not found.endswith("BE"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--cells", default=",".join(tiny.CELLS), help="of the part gradients")
    parser.add_argument("--seconds", type=float, default=360, help="in which all must be done")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    end = time.monotonic() + args.seconds
    if args.tiny:
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; the other tests need none (--tiny tries this script).")
    sizes = TINY if args.tiny else GPU
    kernels.LEAST = 0  # on these few rows too
    ours = kernels.ready(jax.numpy.zeros((1, 128)))
    print(f"{jax.devices()[0].device_kind}, own kernels {'' if ours else 'NOT '}there\n")
    llama = {"backbone": "llama"}
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "gradients": lambda: compared(args.cells.split(","), sizes),
        "llama": lambda: compared(("rmt", "delta")[: 1 if args.tiny else 2], sizes, **llama),
        "lora": lambda: compared(("delta",), sizes, train="lora", **llama),
        "reading": lambda: (row for cell in ("rmt", "delta") for row in read(cell, sizes)),
        "cards": lambda: cards(processes, end),
    }
    processes = compiling(args.tiny) if "cards" in (args.parts or PARTS) else []
    print("| part | what | found | good | s |\n|---|---|---|---|---|", flush=True)
    bad = []
    for name, part in parts.items():
        if args.parts and name not in args.parts:
            continue
        start = time.monotonic()
        rows = part() if start < end else iter([Row("all", "no time was left", False)])
        for row in rows:
            seconds, start = time.monotonic() - start, time.monotonic()
            good = "yes" if row.good else "NO"
            print(f"| {name} | {row.what} | {row.found} | {good} | {seconds:.1f} |", flush=True)
            bad += [] if row.good else [f"{name}: {row.what}"]
            if start > end and name != "cards":
                print(f"| {name} | the rest | no time was left | NO | |", flush=True)
                bad.append(f"{name}: the rest")
                break
    print(f"\nNO: {'; '.join(bad)}" if bad else "\nYES")
    sys.exit(bool(bad))


if __name__ == "__main__":
    if GEMM.split("=")[0] not in os.environ.get("XLA_FLAGS", "") and "--tiny" not in sys.argv:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GEMM}"
    main()
