"""Peak memory and time of evaluation over the length of the text: one flat, the other linear.

    python benchmarks/reading.py --workdir RUN [--lengths 32k,128k,512k,1M] [--samples 2]

Each length runs in a process of its own (`python -m rmt_jax.evaluate`), so that peaks don't mix;
resident memory is what the operating system says at the end. Prints a Markdown table.
"""

import argparse
import json
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
    tokens = cell["tokens"] * cell["samples"]
    return {"tokens": tokens, "peak": peak, "seconds": seconds, "cell": cell["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--lengths", default="32k,128k,512k,1M")
    parser.add_argument("--samples", type=int, default=2)
    args = parser.parse_args()
    # Background text is tokenised and cached at the first use ever: not what is measured here.
    with tempfile.TemporaryDirectory() as out:
        measure(args.workdir, "1k", args.samples, Path(out))
    print("| length | texts | tokens read | peak memory, MB | seconds | tokens/s |")
    print("|---|---|---|---|---|---|")
    peaks = []
    for length in args.lengths.split(","):
        with tempfile.TemporaryDirectory() as out:
            m = measure(args.workdir, length, args.samples, Path(out))
        peaks.append(m["peak"])
        speed = m["tokens"] / m["cell"]
        print(
            f"| {length} | {args.samples} | {m['tokens']:,.0f} | {m['peak']:.0f} | {m['cell']:.1f} "
            f"| {speed:,.0f} |",
            flush=True,
        )
    print(f"\nPeak memory: {100 * (max(peaks) / min(peaks) - 1):.1f} % between least and most.")


if __name__ == "__main__":
    main()
