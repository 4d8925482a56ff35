"""Our code beside PyTorch on this machine, alternating, each in a process of its own.

    pip install -e '.[bench]'
    python -m benchmarks.run [--only 'train/*,read/*'] [--rounds 5] [--device auto] [--quick]
                            [--clock cpu]

Writes RESULTS.md, results.json and images/ (`--out`, default benchmarks/). Cases that `--only` does
not name keep the figures that results.json already has. Every contender has its own interpreter,
the same allocator setting and all cores; while one works, the others wait on a pipe. A round goes
once through the contenders, each round starting with another one. A contender's turn begins with a
call that is not timed: steps and segments follow one another in use, and a virtual machine may have
given the pages of the last turn's temporaries back to its host.

`--clock cpu` is for a machine that others use too: each contender gets one core and the CPU seconds
of its process count, which waiting for that core does not lengthen.
"""

import argparse
import fnmatch
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import page
from benchmarks.cases import Case, cases

HERE = Path(__file__).parent
TURN = 1.0  # seconds that a turn lasts at least
LONG = 5.0  # seconds from which one timed call makes a turn; of shorter ones three do
# Huge pages for large arrays: without them either contender may win by its allocator's luck.
ALLOCATOR = "glibc.malloc.hugetlb=1"


class Child:
    """A contender's process. Errors of its own end the run with its last line."""

    def __init__(self, name: str, device: str, clock: str):
        env = dict(os.environ, GLIBC_TUNABLES=ALLOCATOR, XLA_PYTHON_CLIENT_PREALLOCATE="false")
        env.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if device == "cpu":
            env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "benchmarks.child", name, device, clock]
        if clock == "cpu":  # both frameworks make one thread for each core that they may use
            command = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0))), *command]
        self.name, self.told = name, {}
        self.process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def tell(self, **order: Any) -> None:
        assert self.process.stdin
        self.told = order
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            code, told = self.process.wait(), next(iter(self.told.values()))
            what = told.name if isinstance(told, Case) else self.told
            hint = ": most often the machine's memory was not enough" if code == -9 else ""
            sys.exit(f"The contender '{self.name}' ended with {code} at {what}{hint}.")
        return json.loads(line)

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        return self.hear()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


def measure(
    case: Case, children: dict[str, Child], rounds: int, together: bool = False
) -> dict[str, Any]:
    """Seconds of a call in each round, and peak memory, of each contender. `together`: they compile
    side by side (where there are cores for it)."""
    sides = {name: children[name] for name in case.contenders}
    found: dict[str, Any] = {}
    left_out = dict(case.left_out)
    if together:
        for child in sides.values():
            child.tell(compile=case)
        heard = {name: child.hear() for name, child in sides.items()}
    else:
        heard = {name: child.ask(compile=case) for name, child in sides.items()}
    for name, child in list(sides.items()):
        ready = heard[name] if "error" in heard[name] else child.ask(prepare=case)
        if "error" in ready:
            left_out[name] = ready["error"]
            del sides[name]
            continue
        seconds = ready["seconds"]
        repeat = max(1 if seconds > LONG else 3, min(200, round(TURN / seconds)))
        found[name] = {"batch": ready["batch"], "repeat": repeat, "seconds": [], "peak": None}
    names = list(sides)
    for turn in range(case.rounds or rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = sides[name].ask(repeat=found[name]["repeat"])
            found[name]["seconds"].append(median(took["seconds"]))
            found[name]["peak"] = max(took["peak"] or 0, found[name]["peak"] or 0) or None
    for entry in found.values():
        entry["tokens"] = case.tokens(entry["batch"])
    return {"contenders": found, "left_out": left_out}


def machine(device: str, clock: str, versions: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line for line in file if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device,
        "clock": clock,
        "cpu": model,
        "cores": cores,
        "memory": memory,
        "python": platform.python_version(),
        "allocator": ALLOCATOR,
        **versions,
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="*", help="cases, e.g. 'train/base/*,read/base/1M'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that it works")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(words)
    device = _device(args.device)
    if args.clock == "cpu" and device != "cpu":
        sys.exit("--clock cpu counts what the processor does; add --device cpu.")
    patterns = args.only.split(",")
    chosen = [
        c for c in cases(device != "cpu") if any(fnmatch.fnmatch(c.name, name) for name in patterns)
    ]
    if args.quick:
        chosen = [c for c in chosen if c.name == "train/tiny/1"]
    if not chosen:
        sys.exit(f"No case is named {args.only}: {', '.join(c.name for c in cases(False))}.")
    children: dict[str, Child] = {}

    def engage(wanted: Sequence[str]) -> None:
        for child in children.values():
            child.close()
        children.clear()
        children.update({name: Child(name, device, args.clock) for name in wanted})

    engage(list(dict.fromkeys(name for case in chosen for name in case.contenders)))
    versions: dict[str, Any] = {}
    for child in children.values():
        versions |= {k: v for k, v in child.ask(describe=True).items() if v is not None}
    file = args.out / "results.json"
    here = machine(device, args.clock, versions)
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # Figures of another machine or of other versions do not stand beside these.
    before = old.get("machine", {})
    same = all(before.get(name, value) == value for name, value in here.items())
    results = {"machine": before | here, "cases": old["cases"]} if same and old else None
    results = results or {"machine": here, "cases": {}}
    args.out.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(chosen):
        if number and device != "cpu":
            engage(case.contenders)  # JAX's peak of a GPU's memory is that of the whole process
        results["cases"][case.name] = measure(case, children, args.rounds, device != "cpu")
        print(page.line(case.name, results["cases"][case.name]), flush=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        page.write(results, args.out)  # now: the next case may be too large for the machine
    engage(())


def _device(asked: str) -> str:
    """`cuda` or `cpu`, as PyTorch names them; found out without loading a framework here."""
    there = bool(os.path.exists("/proc/driver/nvidia/version") or glob("/dev/nvidia[0-9]*"))
    if asked == "gpu" and not there:
        sys.exit("There is no NVIDIA driver on this machine; take --device cpu.")
    return "cuda" if there and asked != "cpu" else "cpu"


if __name__ == "__main__":
    main()
