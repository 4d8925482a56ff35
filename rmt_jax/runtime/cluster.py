"""Which process of which cluster is this? Read from environment variables alone, before JAX.

| launcher  | what is read here                                           | found by JAX   |
|-----------|-------------------------------------------------------------|----------------|
| plain     | COORDINATOR_ADDRESS (host:port), NUM_PROCESSES, PROCESS_ID  |                |
| SkyPilot  | SKYPILOT_NODE_IPS, _NODE_RANK, _NUM_GPUS_PER_NODE           |                |
| SLURM     | SLURM_STEP_NUM_TASKS, _PROCID, _LOCALID, …: who is where    | the address    |
| Open MPI  | OMPI_COMM_WORLD_SIZE, _RANK, _LOCAL_RANK, _LOCAL_SIZE       | the address    |
| Cloud TPU | TPU_WORKER_HOSTNAMES (GKE too), or that there are TPU chips | all of it      |

The first that fits is taken. JAX does not look at how many GPUs a process sees (`gpu_of`): it takes
the one with the process's number on its host. Under `--gpus-per-task=1` that one is not there, and
where one process has them all the others stay idle.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rmt_jax.config import ConfigError

PORT = 8476  # where nothing names one; JAX's examples use it
PLAIN = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
Variables = Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """One process among several.

    `address` None: JAX finds it, as its `method`. `local` and `local_count` place the process among
    those of its host; `gpus` is what the launcher says each host has, None where it says nothing.
    """

    launcher: str
    address: str | None = None
    processes: int = 1
    process: int = 0
    local: int = 0
    local_count: int = 1
    gpus: int | None = None
    method: str | None = None  # of `jax.distributed.initialize`


def find(env: Variables) -> Cluster | None:
    """This process's place, or None for a run of a single process.

    Raises:
      ConfigError: variables that contradict each other or lack one another, by name.
    """
    for reader in (_plain, _skypilot, _slurm, _open_mpi, _tpu, _kubernetes):
        cluster = reader(env)
        if cluster is not None:
            if not 0 <= cluster.process < cluster.processes:
                raise ConfigError(
                    f"{cluster.launcher} says that this is process {cluster.process} of"
                    f" {cluster.processes}: processes are counted from 0, so the last is"
                    f" {cluster.processes - 1}."
                )
            # TPU workers start as a cluster even when alone: JAX learns its topology that way.
            return cluster if cluster.processes > 1 or cluster.launcher == "Cloud TPU" else None
    return None


def gpu_of(cluster: Cluster, visible: int) -> tuple[int, ...] | None:
    """The GPUs of its host that a process takes, as indices into the visible ones.

    Args:
      visible: GPUs that this process can see.

    Returns:
      None: all that it sees.

    Raises:
      ConfigError: the processes of the host would leave GPUs idle, or there are too few.
    """
    if cluster.gpus is not None and visible and cluster.gpus != visible:
        raise ConfigError(
            f"{cluster.launcher} promises {cluster.gpus} GPUs a node, but this one shows {visible}:"
            " look at nvidia-smi and CUDA_VISIBLE_DEVICES there."
        )
    # One GPU visible among several processes: the launcher has dealt them (--gpus-per-task=1).
    if cluster.local_count == 1 or visible <= 1:
        return None
    if cluster.local_count == visible:
        return (cluster.local,)
    raise ConfigError(
        f"This host has {visible} GPUs and {cluster.local_count} processes of this run: start"
        f" {visible} processes a host (one GPU each) or 1 (which takes all {visible})."
        + (f" For SLURM: --ntasks-per-node={visible}." if cluster.launcher == "SLURM" else "")
    )


def _plain(env: Variables) -> Cluster | None:
    if "NUM_PROCESSES" not in env and "PROCESS_ID" not in env:
        return None  # an address alone overrides the one of the launchers below
    missing = [name for name in PLAIN if not env.get(name)]
    if missing and env.get("NUM_PROCESSES") != "1":
        raise ConfigError(
            f"{', '.join(n for n in PLAIN if env.get(n))} is set, but not {' and '.join(missing)}:"
            " a run of several processes needs COORDINATOR_ADDRESS (host:port of process 0),"
            " NUM_PROCESSES and PROCESS_ID (from 0) in each; unset them all for one process."
        )
    return Cluster(
        "The environment (NUM_PROCESSES, PROCESS_ID)",
        _address(env),
        _number(env, "NUM_PROCESSES"),
        _number(env, "PROCESS_ID", 0),
    )


def _skypilot(env: Variables) -> Cluster | None:
    nodes = env.get("SKYPILOT_NODE_IPS", "").split()
    if not nodes:
        return None
    return Cluster(
        "SkyPilot",
        _address(env) or f"{nodes[0]}:{PORT}",
        len(nodes),
        _number(env, "SKYPILOT_NODE_RANK"),
        gpus=_number(env, "SKYPILOT_NUM_GPUS_PER_NODE", 0) or None,
    )


def _slurm(env: Variables) -> Cluster | None:
    if "SLURM_JOB_ID" not in env:
        return None
    if "SLURM_STEP_NODELIST" not in env:
        tasks = _number(env, "SLURM_NTASKS", 1)
        if tasks > 1:
            raise ConfigError(
                f"SLURM_NTASKS is {tasks}, but this process was not started by srun and would train"
                " alone: write 'srun python -m rmt_jax.train …', or ask for one task."
            )
        return None
    per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(set(per_node)) > 1:
        raise ConfigError(
            f"SLURM spreads the tasks unevenly over the nodes ({per_node}): set --ntasks-per-node."
        )
    return Cluster(
        "SLURM",
        _address(env),
        _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1)),
        _number(env, "SLURM_PROCID"),
        local=_number(env, "SLURM_LOCALID", 0),
        local_count=per_node[0] if per_node else 1,
        method="slurm",
    )


def _tasks_per_node(text: str) -> list[int]:
    """'4(x2),3' -> [4, 4, 3]."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _open_mpi(env: Variables) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    size = _number(env, "OMPI_COMM_WORLD_SIZE")
    # Open MPI 5 no longer sets the address.
    if size > 1 and not {"OMPI_MCA_orte_hnp_uri", "COORDINATOR_ADDRESS"} & env.keys():
        raise ConfigError(
            "Open MPI 5 does not say where process 0 runs: give it to all processes,"
            " 'mpirun -x COORDINATOR_ADDRESS=HOST:8476 python -m rmt_jax.train …'."
        )
    return Cluster(
        "Open MPI",
        _address(env),
        size,
        _number(env, "OMPI_COMM_WORLD_RANK"),
        local=_number(env, "OMPI_COMM_WORLD_LOCAL_RANK", 0),
        local_count=_number(env, "OMPI_COMM_WORLD_LOCAL_SIZE", 1),
        method="ompi",
    )


def _tpu(env: Variables) -> Cluster | None:
    """A worker of a TPU slice; JAX asks the metadata server or reads the same variables."""
    marks = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH")
    marks += ("MEGASCALE_COORDINATOR_ADDRESS",)
    if env.get("JAX_PLATFORMS", "tpu").startswith("tpu") and any(env.get(mark) for mark in marks):
        return Cluster("Cloud TPU")
    return None


def _kubernetes(env: Variables) -> Cluster | None:
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        raise ConfigError(
            f"This pod is number {env['JOB_COMPLETION_INDEX']} of an indexed Kubernetes job, but"
            " nothing says how many there are: set COORDINATOR_ADDRESS, NUM_PROCESSES and"
            " PROCESS_ID as launch/gke/gpu.yaml does (NUM_PROCESSES=1 for independent pods)."
        )
    return None


def _address(env: Variables) -> str | None:
    """host:port of process 0, where COORDINATOR_ADDRESS says it: it wins over any launcher."""
    given = env.get("COORDINATOR_ADDRESS", "")
    if given and not re.fullmatch(r".+:\d+", given):
        raise ConfigError(
            f"COORDINATOR_ADDRESS '{given}' has no port: write host:port, such as {given}:{PORT}."
        )
    return given or None


def _number(env: Variables, name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a whole number, but is '{text}'.")
    return int(text)
