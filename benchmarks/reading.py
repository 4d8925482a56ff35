"""Peak memory and time of evaluation over the length of the text: one flat, the other linear.

    python benchmarks/reading.py --workdir RUN [--lengths 32k,128k,512k,1M] [--samples 2]
                                 [--out benchmarks/READING.md]

Each length runs in a process of its own (`python -m rmt_jax.evaluate`), so that peaks don't mix;
resident memory is what the operating system says at the end. Prints a Markdown table, and writes it
with the hardware and the versions to --out.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import resource, sys
from rmt_jax.evaluate import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def measure(workdir: str, length: str, samples: int, out: Path) -> dict[str, float]:
    """Peak MB, seconds in all and of the cell (compiling included), tokens read."""
    words = ["--workdir", workdir, "--tasks", "qa1", "--lengths", length, "--samples", str(samples)]
    words += ["--batch", str(samples), "--out", str(out)]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    peak = int(done.stdout.split("peak ")[1]) / 1024
    cell = json.loads((out / "summary.json").read_text())["cells"][0]
    read = {name: cell[name] * cell["samples"] for name in ("tokens", "characters")}
    return read | {"peak": peak, "seconds": seconds, "cell": cell["seconds"]}


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
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also written to this file")
    args = parser.parse_args()
    # Background text is tokenised and cached at the first use ever: not what is measured here.
    with tempfile.TemporaryDirectory() as out:
        measure(args.workdir, "1k", args.samples, Path(out))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say("| length | texts | tokens read | characters | peak memory, MB | seconds | tokens/s |")
    say("|---|---|---|---|---|---|---|")
    peaks, speeds = [], []
    for length in args.lengths.split(","):
        with tempfile.TemporaryDirectory() as out:
            m = measure(args.workdir, length, args.samples, Path(out))
        peaks.append(m["peak"])
        speeds.append(m["tokens"] / m["cell"])
        say(
            f"| {length} | {args.samples} | {m['tokens']:,.0f} | {m['characters']:,.0f} "
            f"| {m['peak']:.0f} | {m['cell']:.1f} | {speeds[-1]:,.0f} |"
        )
    apart = [100 * (max(x) / min(x) - 1) for x in (peaks, speeds)]
    say(
        f"\nBetween least and most: {apart[0]:.1f} % of peak memory, {apart[1]:.1f} % of tokens/s."
        " Seconds: of the cell, compiling included."
    )
    if args.out:
        command = f"python benchmarks/reading.py --lengths {args.lengths} --samples {args.samples}"
        head = f"# Reading long texts\n\n`{command} --workdir RUN`\n\n{machine()}\n"
        args.out.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
