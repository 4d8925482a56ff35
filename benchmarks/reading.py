"""Peak memory and time of evaluation over the length of the text: one flat, the other linear.

    python benchmarks/reading.py --workdir RUN [--lengths 32k,128k,512k,1M] [--samples 2]
                                 [--out benchmarks/READING.md]

One process evaluates (`rmt_jax.evaluate`) one length after another; a short text before them
compiles everything. Peak memory is the resident memory at its highest while that length was read
(VmHWM, which Linux lets a process reset). Prints a Markdown table, and writes it with hardware and
versions to --out.
"""

import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from rmt_jax import api
from rmt_jax.evaluation import evaluate


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
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--lengths", default="32k,128k,512k,1M")
    parser.add_argument("--samples", type=int, default=2, help="texts read together")
    parser.add_argument("--out", type=Path, help="also written to this file")
    args = parser.parse_args()
    model, lines = api.load(args.workdir), []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    def measure(length: str):
        return evaluate(
            model,
            tasks=["qa1"],
            lengths=[length],
            samples=args.samples,
            batch=args.samples,
            progress=False,
        )[0]

    measure("4s")
    say("| length | texts | tokens read | characters | peak memory, MB | seconds | tokens/s |")
    say("|---|---|---|---|---|---|---|")
    peaks, speeds = [], []
    for length in args.lengths.split(","):
        reset_peak()
        result = measure(length)
        peaks.append(peak())
        tokens = result.tokens * result.samples
        speeds.append(tokens / result.seconds)
        say(
            f"| {length} | {args.samples} | {tokens:,.0f} "
            f"| {result.characters * result.samples:,.0f} | {peaks[-1]:.0f} "
            f"| {result.seconds:.1f} | {speeds[-1]:,.0f} |"
        )
    apart = [100 * (max(x) / min(x) - 1) for x in (peaks, speeds)]
    say(
        f"\nBetween least and most: {apart[0]:.1f} % of peak memory, {apart[1]:.1f} % of tokens/s. "
        "Seconds hold composing the texts, tokenising, reading and answering."
    )
    if args.out:
        command = f"python benchmarks/reading.py --lengths {args.lengths} --samples {args.samples}"
        weights = sum(x.size for x in jax.tree.leaves(model.params))
        head = (
            f"# Reading long texts\n\n`{command} --workdir RUN`: {model.config.model.cell}, "
            f"{weights:,} weights, segments of {model.segment_tokens} tokens.\n\n{machine()}.\n"
        )
        args.out.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
