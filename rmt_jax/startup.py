"""Before the first array: caches, warnings, devices."""

import os
from pathlib import Path

import jax


def prepare() -> None:
    """The persistent compilation cache, on by default; JAX_COMPILATION_CACHE_DIR moves it."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "rmt_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)


def describe() -> str:
    """The devices in words: '1 cpu device', '8 NVIDIA H100 devices, 1 of 2 processes'."""
    devices = jax.devices()
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "cpu"
    text = f"{len(devices)} {kind} device{'s' if len(devices) > 1 else ''}"
    if jax.process_count() > 1:
        text += f", process {jax.process_index() + 1} of {jax.process_count()}"
    return text
