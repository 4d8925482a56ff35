"""One contender in a process of its own: `python -m benchmarks.child NAME DEVICE CLOCK`.

It reads one order a line, as JSON, and writes one answer a line; between orders it is blocked on
the pipe, so that the other contender has the machine to itself.

    {"compile": CASE}  -> {}, when every batch of it has run once
    {"prepare": CASE}  -> {"batch": texts, "seconds": of one call, when warm}
    {"repeat": n}      -> {"seconds": [...] of n calls, after one more; "peak": bytes, or null}
    {"describe": true} -> versions

What goes wrong in the first two comes back as {"error": sentence}.
"""

import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cases import SIZES, Case


def contender(name: str, device: str) -> Any:
    """Imports one framework and not the other."""
    if name in ("ours", "preset", "remat"):
        from benchmarks.ours import Ours

        return Ours(remat=name == "remat", as_preset=name == "preset")
    from benchmarks.peer import Theirs

    return Theirs(name == "published", device)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def compiled(side: Any, case: Case) -> list[tuple[Callable[[], Any], int]]:
    """The case's function at each batch, called once."""
    size, found = SIZES[case.size], []
    for batch in case.batches:
        if case.kind == "answer":
            work = side.answer(size, case.segments)
        else:
            work = getattr(side, case.kind)(size, case.segments, batch)
        work()
        found.append((work, batch))
    return found


def fastest(
    found: list[tuple[Callable[[], Any], int]], clock: Callable[[], float]
) -> tuple[Callable[[], Any], int, float]:
    """The function at its best batch, that batch, and the seconds of a warm call."""
    timed = []
    for work, batch in found:
        start = clock()
        work()
        timed.append((work, batch, clock() - start))
    return min(timed, key=lambda entry: entry[2] / entry[1])


def main() -> None:
    orders, answers = sys.stdin, sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not look like an answer
    side, clock = contender(sys.argv[1], sys.argv[2]), CLOCKS[sys.argv[3]]
    work: Callable[[], Any] = _nothing
    found: list[tuple[Callable[[], Any], int]] = []
    for line in orders:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "compile" in order or "prepare" in order:
            try:
                if "compile" in order:
                    work, found = _nothing, []  # the last case's weights go before this one's come
                    tidy()
                    found = compiled(side, Case(*order["compile"]))
                else:
                    work, batch, seconds = fastest(found, clock)
                    found = []
                    answer = {"batch": batch, "seconds": seconds}
            except Exception as error:  # no room, most often; the others go on
                work, found = _nothing, []
                tidy()
                answer = {"error": f"{type(error).__name__}: {str(error).strip()[:200]}"}
        elif "repeat" in order:
            lowered = forget_peak()
            times = []
            work()  # as in use, where one call follows another
            for _ in range(order["repeat"]):
                start = clock()
                work()
                times.append(clock() - start)
            resident = resident_peak() if lowered else None
            answer = {"seconds": times, "peak": side.peak() or resident}
        else:
            answer = side.describe()
        print(json.dumps(answer), file=answers, flush=True)


def _nothing() -> None:
    pass


def tidy() -> None:
    """Gives back what the last case has left, so that peaks are of one case."""
    gc.collect()
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> bool:
    """Sets the kernel's high-water mark of this process to what is resident now."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return True
    except OSError:
        return False


def resident_peak() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        match = re.search(r"VmHWM:\s+(\d+) kB", file.read())
    assert match, "/proc/self/status has no VmHWM"
    return 1024 * int(match[1])


if __name__ == "__main__":
    main()
