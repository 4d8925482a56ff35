"""Peak memory and time of evaluation over the length of the text: one flat, the other linear.

    python benchmarks/reading.py [--workdir multitask,backbone-rmt] [--lengths 32k,1M,10M]
                                 [--texts 1,16] [--out benchmarks/READING.md]

One process evaluates (`rmt_jax.evaluate`) one length after another; a short text before them
compiles everything. Peak memory is the resident memory at its highest while that length was read
(VmHWM, which Linux lets a process reset). Tokens per second are given by the clock and by the time
of a core, which a busy machine changes less. Prints a Markdown table, and writes it with hardware
and versions to --out, line by line.
"""

import argparse
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

from rmt_jax import api
from rmt_jax.data.lengths import Length
from rmt_jax.evaluation import evaluate, runner
from rmt_jax.results import EvalResult


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MB, the highest since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this kernel does not tell VmHWM")


def machine() -> str:
    """Processor, cores, memory, versions."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = (f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "numpy"))
    return (
        f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, "
        f"{', '.join(versions)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workdir", default="multitask,backbone-rmt", help="runs or checkpoints")
    parser.add_argument("--lengths", default="32k,1M,10M")
    parser.add_argument("--texts", default="1,16", help="questions of a length, each with a text")
    parser.add_argument("--out", type=Path, help="also written to this file")
    args = parser.parse_args()
    command = f"--workdir {args.workdir} --lengths {args.lengths} --texts {args.texts}"
    lines = [
        f"# Reading long texts\n\n`python benchmarks/reading.py {command}`\n\n{machine()};"
        f" devices: {jax.local_device_count()}.\n",
        "| memory | weights | length | texts | side by side | tokens read | peak memory, MB |"
        " seconds | tokens/s | tokens per core-second |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for name in args.workdir.split(","):
        model = api.load(name, everywhere=True)
        weights = sum(x.size for x in jax.tree.leaves(model.params))
        peaks = []
        for texts in map(int, args.texts.split(",")):
            for length in args.lengths.split(","):
                nominal = Length.parse(length, model.segment_tokens).tokens
                batch = runner.batch_size(texts, texts, nominal, model.ways)
                measure(model, "4s", texts, batch)
                reset_peak()
                cpu = time.process_time()
                result = measure(model, length, texts, batch)
                cpu = time.process_time() - cpu
                peaks.append(peak())
                tokens = result.tokens * result.samples
                say(
                    f"| {result.cell} | {weights:,} | {length} | {texts} | {batch} | {tokens:,.0f}"
                    f" | {peaks[-1]:,.0f} | {result.seconds:,.1f}"
                    f" | {tokens / result.seconds:,.0f} | {tokens / cpu:,.0f} |"
                )
    say(
        "\nSeconds hold composing the texts, tokenising, reading and answering. Side by side: texts"
        " that are read at a time; the host holds four million tokens."
    )


def measure(model: api.Model, length: str, texts: int, batch: int) -> EvalResult:
    return evaluate(
        model, tasks=["qa1"], lengths=[length], samples=texts, batch=batch, progress=False
    )[0]


if __name__ == "__main__":
    main()
