"""Before the first array: the cluster, the devices, the caches. A run never starts on less than the
machine has without being told to."""

import contextlib
import glob
import importlib.util
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rmt_jax import files
from rmt_jax.config import Config, ConfigError, Model
from rmt_jax.errors import RmtError
from rmt_jax.runtime import cluster, peers, switches

log = logging.getLogger(__name__)

# A process that has finished waits for process 0, which may still write for hours; one that is gone
# is noticed all the same (`peers`).
SHUTDOWN_SECONDS = 24 * 3600

# Weights of the layers up to which every core of a CPU may hold a copy of a model, its gradient and
# two moments: 0.4 GB a core at most.
COPIED = 20_000_000


def prepare() -> None:
    """Joins the cluster, checks the devices, switches the compilation cache on, and off what this
    code does not work with (`switches`).

    Raises:
      ConfigError: devices that would stay idle, a fall back to the CPU, a cluster that does not
        come together; with the way out.
    """
    switches.make_neutral()
    _check_devices(join())
    cache()


def join() -> cluster.Cluster | None:
    """Joins the cluster that this process was started in, if there is one. Raises ConfigError where
    it does not come together."""
    place = cluster.find(os.environ)
    if place is None and _on_tpu_host():
        place = cluster.Cluster("Cloud TPU")  # its metadata server says whether it is a pod
    if place is not None:
        _join(place)
    return place


def one_device_a_core(config: Config) -> None:
    """Where a run will be on a CPU, alone: makes each core a device, as far as the batches divide.

    A small model's products are too small for XLA to split over threads; texts split well. Nothing
    is done where the config's mesh says how many, nor where `cores_as_devices` does nothing.
    """
    mesh = config.mesh
    if mesh.data == -1 and mesh.fsdp * mesh.tensor == 1:
        rows = [stage.batch // config.optimizer.accumulate for stage in config.stages]
        cores_as_devices(config.model, rows)


def cores_as_devices(model: Model, rows: Sequence[int] = ()) -> None:
    """Makes each core of a CPU a device, as many as divide all of `rows`. Nothing is done for a
    large model, in a cluster, where JAX_NUM_CPU_DEVICES says how many, and after JAX has begun."""
    set_already = getattr(jax.config, "jax_num_cpu_devices", -1) > 0
    told = "JAX_NUM_CPU_DEVICES" in os.environ or set_already
    if told or 12 * model.layers * model.width**2 > COPIED or cluster.find(os.environ) is not None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = [n for n in range(1, (cores or 1) + 1) if all(r % n == 0 for r in rows)]
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        jax.config.update("jax_num_cpu_devices", max(fitting))


def cache() -> None:
    """The persistent compilation cache, on by default; JAX_COMPILATION_CACHE_DIR moves it. Where it
    cannot be written, that is said and nothing is kept."""
    if not jax.config.values.get("jax_enable_compilation_cache", True):
        return
    given = getattr(jax.config, "jax_compilation_cache_dir", None)
    try:
        folder = Path(os.path.expanduser(given)) if given else files.cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b" ")  # a full disk has room for names
    except (OSError, RmtError) as error:
        log.warning(
            "compiled programs are not kept (%s): JAX_COMPILATION_CACHE_DIR names another folder",
            error,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not given:
        # Also the small programs around reading and answering: half of what `ask` compiles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def owner() -> bool:
    """Whether this process writes the run's files. (All take part in checkpoints.)"""
    # Asking for its number starts JAX: what is still to be set would come too late.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def describe() -> str:
    """The devices in words: '1 cpu device', '8 NVIDIA H100 devices, process 1 of 2'."""
    devices = jax.devices()
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "cpu"
    text = f"{len(devices)} {kind} device{'s' if len(devices) > 1 else ''}"
    if jax.process_count() > 1:
        text += f", process {jax.process_index() + 1} of {jax.process_count()}"
    return text


def gpus_present(dev: str = "/dev") -> int:
    """NVIDIA GPUs that this process may use: the device files, less what CUDA_VISIBLE_DEVICES
    hides."""
    files = len(glob.glob(f"{dev}/nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return files
    # CUDA reads the list up to the first entry that is no device, such as -1.
    named = [part.strip() for part in visible.split(",")]
    end = next((i for i, part in enumerate(named) if part in ("", "-1")), len(named))
    return min(end, files)


def tpu_present(dev: str = "/dev") -> bool:
    """A TPU's device files, or the library that `pip install rmt_jax[tpu]` brings."""
    return bool(glob.glob(f"{dev}/accel[0-9]*")) or importlib.util.find_spec("libtpu") is not None


def _on_tpu_host(dev: str = "/dev") -> bool:
    """A machine with TPU chips (older ones are /dev/accelN, newer ones /dev/vfio/N) and the library
    for them."""
    if os.environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu"):
        return False
    chips = glob.glob(f"{dev}/accel[0-9]*") or glob.glob(f"{dev}/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _join(place: cluster.Cluster) -> None:
    options: dict[str, Any] = {}
    if place.launcher != "Cloud TPU":
        on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
        own = None if on_cpu else cluster.gpu_of(place, gpus_present())
        # None would have JAX take one GPU a process; of an empty list it takes all that it sees.
        options = {"local_device_ids": list(own or ()), "cluster_detection_method": place.method}
    if place.address is not None:
        options |= {
            "coordinator_address": place.address,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=peers.SILENCE,
            **options,
        )
    except Exception as error:  # gRPC and XLA raise several kinds
        if place.launcher == "Cloud TPU" and "coordinator_address should be" in str(error):
            return  # a TPU host on its own, without a metadata server
        raise ConfigError(
            f"The {place.processes} processes of this run ({place.launcher}) did not find each"
            f" other at {place.address or 'the address that JAX found'}"
            f" ({_first_line(error)}): is process 0 running, is the port open, and was"
            " no array made before?"
        ) from error


def _check_devices(place: cluster.Cluster | None) -> None:
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise ConfigError(
            f"JAX cannot start on '{asked or 'this machine'}' ({_first_line(error)})."
            f" {_install(asked)} JAX_PLATFORMS=cpu trains on the CPU."
        ) from error
    platform = devices[0].platform
    hosts_gpus = gpus_present()
    if platform == "cpu" and not asked.startswith("cpu"):
        found = f"{hosts_gpus} NVIDIA GPU(s)" if hosts_gpus else "a TPU" if tpu_present() else ""
        if found:
            raise ConfigError(
                f"This machine has {found}, but JAX {jax.__version__} runs on the CPU."
                f" {_install('cuda' if hosts_gpus else 'tpu')} To train on the CPU on purpose, set"
                " JAX_PLATFORMS=cpu."
            )
    used = len(devices) * (place.local_count if place else 1)
    # With --gpus-per-task each process sees only its own: more used than seen is fine.
    if platform == "gpu" and used < hosts_gpus:
        raise ConfigError(
            f"This host has {hosts_gpus} GPUs, but the run uses {used} of them: start one process"
            f" for all, or {hosts_gpus} processes; CUDA_VISIBLE_DEVICES hides what shall stay idle."
        )
    if jax.device_count() != len(devices) * jax.process_count():
        raise ConfigError(
            f"The {jax.process_count()} processes have {jax.device_count()} devices together, but"
            f" this one has {len(devices)}: every process must have equally many."
        )


def _install(platform: str) -> str:
    extra = {"cuda": "cuda12", "gpu": "cuda12", "tpu": "tpu"}.get(platform.split(",")[0])
    return f"Install the build for it: pip install -e '.[{extra}]'." if extra else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
