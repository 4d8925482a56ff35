"""How fast rows of one's own are prepared and read: `python -m benchmarks.rows [--megabytes 200]`.

JSONL files of random words are made in a temporary folder. Each is prepared in a process of its
own, which says its peak memory; then batches are made from what is kept. Goals on one core: 5
million tokens a second from prepared rows, and memory that does not grow with the file.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rmt_jax.config import Config, Data, Model, Questions, Stage
from rmt_jax.data import tokenizer
from rmt_jax.data.loader import Loader
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.rows import store

WORDS = "the house and river train paper letter winter morning garden office kitchen of was in to"
CONTEXT = 20_000  # characters of a row
MEGABYTE = 1_000_000


def make(path: Path, megabytes: int) -> None:
    words = WORDS.split()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(megabytes * MEGABYTE // CONTEXT):
            rng = AddressedRng(number)
            text = " ".join(rng.pick(words) for _ in range(CONTEXT // 6))
            row = {"context": f"{text}. Row {number}.", "question": "Which?", "answer": "this"}
            file.write(json.dumps(row) + "\n")


def prepare(path: str) -> None:
    """In the child process: prints seconds and peak memory in MB."""
    words, start = tokenizer.load(), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store.load("rows", Questions(train=path), words)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "before": before / 1024, "peak": peak / 1024}))


def read(path: Path, seconds: float) -> float:
    """Tokens per second of batches from prepared rows."""
    config = Config(
        model=Model(segment_tokens=512),
        data=Data(tasks=("rows",), questions={"rows": Questions(train=str(path))}),
        stages=(Stage(32, steps=10**6, batch=16, learning_rate=0),),
    )
    loader = Loader(config, tokenizer.load())
    loader.batch_at(0)
    tokens, step, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokens += int(loader.batch_at(step).mask.sum())
        step += 1
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        prepare(args.child)
        return
    print("| file | prepared | peak memory | tokens/s from prepared rows |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RMT_JAX_CACHE"] = str(Path(folder) / "cache")
        for size in (args.megabytes // 4, args.megabytes):
            path = Path(folder) / f"{size}.jsonl"
            make(path, size)
            child = [sys.executable, "-m", "benchmarks.rows", "--child", str(path)]
            found = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
            rate = read(path, args.seconds)
            print(
                f"| {size} MB | {size / found['seconds']:.1f} MB/s | {found['peak']:.0f} MB"
                f" ({found['before']:.0f} before) | {rate / 1e6:.1f} million |"
            )


if __name__ == "__main__":
    main()
