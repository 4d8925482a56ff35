"""What devices can do at best, what a train step needs, and how much memory there is."""

import math
import os
from typing import Any, NamedTuple

from rmt_jax.config import Config, ConfigError

# Dense bfloat16 peaks in TFLOP/s, from the makers' data sheets (without sparsity). The first entry
# that `device_kind` contains counts; float32 on these is slower.
PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10", 125.0),
    ("TPU7x", 1153.5),  # half a chip: each of its two chiplets is a device
    ("TPU v6", 918.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v4", 275.0),
    ("TPU v3", 123.0),
)


def peak(device: Any) -> float | None:
    """Dense bfloat16 FLOP/s of a device, None where it is not known."""
    return next((1e12 * t for kind, t in PEAKS if kind in device.device_kind), None)


GIB = 2.0**30


class Chip(NamedTuple):
    """A device to plan with, from its maker's data sheet."""

    kind: str  # as in PEAKS
    bandwidth: float  # bytes/s between the chip and its memory
    memory: float  # bytes
    share: float  # of the memory that JAX takes: 75 % by default on a GPU, nearly all on a TPU
    links: float = math.inf  # bytes/s from other chips of a TPU's slice; not known of GPUs

    @property
    def flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return 1e12 * dict(PEAKS)[self.kind]

    @property
    def room(self) -> float:
        """Bytes that a program can have."""
        return self.share * self.memory


# Google's pages on its TPUs (half of what links carry in both directions), and the share of their
# memory that the compiler has (it says so when it refuses a program); NVIDIA's data sheets of the
# SXM modules (A100 with 80 GB).
CHIPS: dict[str, Chip] = {
    "v5e": Chip("TPU v5e", 819e9, 16 * GIB, 15.75 / 16, 200e9),
    "v6e": Chip("TPU v6", 1638e9, 32 * GIB, 31.24 / 32, 400e9),
    "v5p": Chip("TPU v5", 2765e9, 96 * GIB, 95.73 / 96, 600e9),
    "tpu7x": Chip("TPU7x", 3690e9, 96 * GIB, 94.74 / 96, 600e9),
    "a100": Chip("A100", 2039e9, 80e9, 0.75),
    "h100": Chip("H100", 3350e9, 80e9, 0.75),
    "h200": Chip("H200", 4800e9, 141e9, 0.75),
}


USUAL = ("v5e", "v6e", "a100", "h100", "h200")  # what a plan shows if none is named


def host_memory() -> tuple[int, int] | None:
    """Bytes of the host's memory, (all, available); None where /proc does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return tuple(1024 * int(lines[k].split()[0]) for k in ("MemTotal", "MemAvailable"))  # type: ignore
    except (OSError, KeyError, ValueError):
        return None


def device_memory(device: Any) -> int | None:
    """Bytes that JAX may use on a device; on the CPU the host's available memory."""
    if device.platform == "cpu":
        memory = host_memory()
        return memory[1] if memory else None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def fits(compiled: Any, device: Any, config: Config) -> None:
    """Compares what a compiled step needs on a device with what there is, before it runs.

    Raises:
      ConfigError: with both sizes, and the settings that would fit.
    """
    need, limit = needed_memory(compiled), device_memory(device)
    if need is None or limit is None or need <= limit:
        return
    largest, ways = max(stage.batch for stage in config.stages), config.optimizer.accumulate
    split = next((n for n in range(ways + 1, largest + 1) if need * ways / n <= limit / 1.1), None)
    advice = ["raise config.mesh.fsdp on more devices"]
    if split is not None:
        advice.insert(
            0, f"set config.optimizer.accumulate to {split} or more (a divisor of the batch)"
        )
    if not config.model.remat:
        advice.insert(0, "set config.model.remat=true")
    raise ConfigError(
        f"A train step needs about {need / 2**30:.1f} GiB on each device, but there are"
        f" {limit / 2**30:.1f} GiB: {'; or '.join(advice)}."
    )


def needed_memory(compiled: Any) -> int | None:
    """Bytes on each device that a compiled program needs, None where the backend does not say."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return int(
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def driver(path: str = "/proc/driver/nvidia/version") -> str | None:
    """The NVIDIA driver's own line, None without one."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.readline().partition(":")[2].strip()
