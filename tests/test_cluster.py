"""The variables that launchers leave, and devices that must not stay idle."""

import dataclasses
import os
import subprocess
import sys
import types

import jax
import pytest
from jax._src import clusters

from rmt_jax import cli
from rmt_jax.config import Config, ConfigError, Model, Optimizer, Stage, update
from rmt_jax.runtime import cluster, startup

pytestmark = pytest.mark.portable

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
SKY = {
    "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (
            {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"},
            ("a:1", 2, 1, 0, 1),
        ),
        ({"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "1", "PROCESS_ID": "0"}, None),
        ({"NUM_PROCESSES": "1"}, None),
        (SKY, ("10.0.0.4:8476", 2, 1, 0, 1)),
        (SKY | {"SKYPILOT_NODE_IPS": "10.0.0.4", "SKYPILOT_NODE_RANK": "0"}, None),
        (SLURM, (None, 8, 5, 1, 4)),
        (SLURM | {"COORDINATOR_ADDRESS": "ib0:99"}, ("ib0:99", 8, 5, 1, 4)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, None),
        (OMPI, (None, 4, 3, 1, 2)),
        (OMPI | {"COORDINATOR_ADDRESS": "ib0:99"}, ("ib0:99", 4, 3, 1, 2)),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1", "TPU_WORKER_ID": "1"}, (None, 1, 0, 0, 1)),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1", "JAX_PLATFORMS": "cpu"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_every_launcher_is_read(env, expected):
    place = cluster.find(env)
    found = place and (
        place.address,
        place.processes,
        place.process,
        place.local,
        place.local_count,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"NUM_PROCESSES": "2"}, "not COORDINATOR_ADDRESS and PROCESS_ID: a run of several"),
        (
            {"COORDINATOR_ADDRESS": "a", "NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            "'a' has no port: write host:port, such as a:8476",
        ),
        (
            {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"},
            "process 2 of 2: processes are counted from 0, so the last is 1",
        ),
        (
            {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"},
            "NUM_PROCESSES must be a whole number, but is 'two'",
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, "SLURM_NTASKS is 8, but this process was not"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, "unevenly over the nodes ([4, 3])"),
        (
            {k: v for k, v in OMPI.items() if "uri" not in k},
            "mpirun -x COORDINATOR_ADDRESS=HOST:8476",
        ),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
            "number 1 of an indexed Kubernetes job",
        ),
        (SKY | {"SKYPILOT_NODE_RANK": ""}, "SKYPILOT_NODE_RANK must be a whole number, but is ''"),
    ],
)
def test_half_a_cluster_gets_a_sentence(env, sentence):
    with pytest.raises(ConfigError) as caught:
        cluster.find(env)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("env", "address", "process"),
    [(SLURM, "gpu007:61441", 5), (OMPI, "10.96.0.1:62624", 3)],
    ids=("slurm", "ompi"),
)
@pytest.mark.parametrize(("gpus", "own"), ((4, [1]), (1, []), (0, [])))
def test_jax_finds_what_is_left_to_it(monkeypatch, env, address, process, gpus, own):
    """Its own detection, from what we hand to it: only the address is still to be found, and of the
    GPUs none is taken twice or left."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda" if gpus else "cpu")
    monkeypatch.setattr(startup, "gpus_present", lambda: gpus)
    asked = {}
    monkeypatch.setattr(startup.jax.distributed, "initialize", lambda **given: asked.update(given))
    place = cluster.find(env)
    assert place is not None
    place = dataclasses.replace(place, local_count=gpus or 4)
    startup._join(place)
    assert asked["local_device_ids"] == own and asked["heartbeat_timeout_seconds"] < 60
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, asked["local_device_ids"], asked["cluster_detection_method"], 1
    )
    assert found == (address, place.processes, process, own)


def test_gpus_are_dealt_to_the_processes_of_a_host():
    place = cluster.find(SLURM)
    assert place is not None
    assert cluster.gpu_of(place, 4) == (1,)  # one each
    assert cluster.gpu_of(place, 1) is None  # --gpus-per-task=1: it sees only its own
    with pytest.raises(ConfigError, match="has 8 GPUs and 4 processes.*--ntasks-per-node=8"):
        cluster.gpu_of(place, 8)
    sky = cluster.find(SKY)
    assert sky is not None and cluster.gpu_of(sky, 8) is None
    with pytest.raises(ConfigError, match="promises 8 GPUs a node, but this one shows 7"):
        cluster.gpu_of(sky, 7)


def test_gpus_present_are_counted_as_cuda_does(tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert startup.gpus_present(str(tmp_path)) == 4
    for text, count in (("0,1", 2), ("", 0), ("-1", 0), ("2,-1,3", 1), ("GPU-8f1,GPU-2aa", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert startup.gpus_present(str(tmp_path)) == count, text


def test_falling_back_to_the_cpu_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(startup, "gpus_present", lambda: 8)
    with pytest.raises(ConfigError, match=r"has 8 NVIDIA GPU.* runs on the CPU.*cuda12"):
        startup._check_devices(None)
    monkeypatch.setattr(startup, "gpus_present", lambda: 0)
    monkeypatch.setattr(startup, "tpu_present", lambda: True)
    with pytest.raises(ConfigError, match=r"has a TPU, but JAX .* pip install -e '.\[tpu\]'"):
        startup._check_devices(None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    startup._check_devices(None)


def test_a_tpu_host_asks_jax_for_its_pod(tmp_path, monkeypatch):
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "0").touch()
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert startup._on_tpu_host(str(tmp_path)) and not startup._on_tpu_host(str(tmp_path / "x"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not startup._on_tpu_host(str(tmp_path))
    asked = []

    def initialize(**options):
        asked.append(options)
        raise ValueError(problem)

    monkeypatch.setattr(startup.jax.distributed, "initialize", initialize)
    problem = "coordinator_address should be defined."
    startup._join(cluster.Cluster("Cloud TPU"))  # alone
    assert "coordinator_address" not in asked[0]  # JAX asks the metadata server
    problem = "deadline exceeded"
    with pytest.raises(ConfigError, match="did not find each other .*deadline exceeded"):
        startup._join(cluster.Cluster("Cloud TPU"))


def test_fewer_devices_than_the_host_has_is_an_error(monkeypatch):
    class Gpu:
        platform = "gpu"

    monkeypatch.setattr(startup, "gpus_present", lambda: 8)
    monkeypatch.setattr(startup.jax, "local_devices", lambda: [Gpu()])
    with pytest.raises(ConfigError, match="has 8 GPUs, but the run uses 1 of them"):
        startup._check_devices(None)
    monkeypatch.setattr(startup, "gpus_present", lambda: 1)
    monkeypatch.setattr(startup.jax, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match="every process must have equally many"):
        startup._check_devices(None)


def test_compiled_programs_that_cannot_be_kept(tmp_path, monkeypatch, capfd):
    """A full disk, a folder that cannot be made: said once, and nothing is kept."""
    cli.log_to_stderr()
    before = jax.config.values["jax_compilation_cache_dir"]
    seconds = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "kept"))
    try:
        startup.cache()
        assert jax.config.values["jax_compilation_cache_dir"] == before  # the tests have it off
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", None)
        startup.cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "kept" / "xla")
        (tmp_path / "file").write_text("")
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file" / "xla"))
        startup.cache()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_enable_compilation_cache", False)
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    told = capfd.readouterr().err
    assert f"programs are not kept ([Errno 20] Not a directory: '{tmp_path / 'file'}" in told
    assert "JAX_COMPILATION_CACHE_DIR names another folder" in told


def test_an_unknown_platform_is_a_sentence(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(startup.jax, "local_devices", fail)
    with pytest.raises(ConfigError, match=r"cannot start on 'cuda' \(Unable.*\[cuda12\]"):
        startup._check_devices(None)


@pytest.mark.parametrize(
    "cores, settings, devices",
    [
        (6, {}, 4),  # 32 texts, 4 microbatches: 8 texts go to four devices, not to six
        (6, {"optimizer.accumulate": 1}, 4),
        (2, {}, 2),
        (6, {"mesh.data": 1}, None),  # the user says how many
        (6, {"mesh.fsdp": 2}, None),
        (6, {"model.layers": 12, "model.width": 768, "model.heads": 12}, None),  # too large
    ],
)
def test_each_core_is_a_device_as_far_as_texts_divide(monkeypatch, cores, settings, devices):
    asked = {}
    fake = types.SimpleNamespace(jax_num_cpu_devices=-1, update=asked.__setitem__)
    monkeypatch.setattr(startup, "jax", types.SimpleNamespace(config=fake))
    monkeypatch.setattr(startup.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    config = Config(
        model=Model(layers=4, width=64, heads=4),
        stages=(Stage(4, 1, 32, 1e-3), Stage(8, 1, 32, 1e-3)),
        optimizer=Optimizer(accumulate=4),
    )
    startup.one_device_a_core(update(config, settings))
    assert asked.get("jax_num_cpu_devices") == devices
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    asked.clear()
    startup.one_device_a_core(config)
    assert not asked


def test_waiting_for_signals_starts_no_device():
    """Cores are made devices after that, where a model is loaded."""
    code = (
        "import jax\nfrom rmt_jax.runtime.preemption import Signals\n"
        "with Signals(): jax.config.update('jax_num_cpu_devices', 3)\nprint(jax.device_count())"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
