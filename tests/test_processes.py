"""Two processes on this machine: a cluster in small, which trains, stops and evaluates as one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rmt_jax import convert
from rmt_jax.models.io import hub, weights
from rmt_jax.runtime import peers
from rmt_jax.runtime.preemption import REQUEUE

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
pytestmark = pytest.mark.slow  # a minute and more: two processes compile on two cores


SMALLER = (
    "model.layers=1",
    "model.width=16",
    "data.tasks=qa1",
    "stages.0.steps=20",
    "stages.1.steps=0",
    "stages.1.segments=1",
    "stages.1.background=0.5",
    "init=",
    "log_every=1",
    "checkpoint.every=50",
    "evaluation.lengths=1s",
    "evaluation.samples=2",
)


def node(processes: int, workdir: Path, *settings: str) -> tuple[list[str], dict]:
    """The command and environment of a real run on two CPU devices, whatever the processes."""
    command = ["bash", str(LAUNCH / "node.sh"), "--processes", str(processes), "--restarts", "0"]
    command += ["--", "--config", "configs/multitask.py:smoke", "--workdir", str(workdir)]
    command += [f"--config.{setting}" for setting in (*SMALLER, *settings)]
    devices = {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    return command, os.environ | devices | {"JAX_NUM_CPU_DEVICES": str(2 // processes)}


def started(
    command: list[str], processes: int, folder: Path, devices: int = 0
) -> list[subprocess.Popen]:
    """So many processes that run this command as a cluster. devices: of each; 0: as many as it
    takes by itself."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for number in range(processes):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        if devices:
            env["JAX_NUM_CPU_DEVICES"] = str(devices)
        if processes > 1:
            env |= {"COORDINATOR_ADDRESS": f"localhost:{port}", "NUM_PROCESSES": str(processes)}
            env["PROCESS_ID"] = str(number)
        running.append(
            subprocess.Popen(
                command, env=env, cwd=folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return running


def together(command: list[str], processes: int, folder: Path, devices: int = 0) -> list[str]:
    """What each of them prints."""
    running = started(command, processes, folder, devices)
    said = [process.communicate(timeout=300) for process in running]
    assert not any(process.returncode for process in running), said
    return [out for out, _ in said]


def answers_in(out: Path) -> dict[Path, list[str]]:
    """The lines of its JSON files, without the seconds that they took."""
    files = {file.relative_to(out): file for file in out.rglob("*.json*")}
    return {
        name: re.sub(r'"seconds": [0-9.e-]+', "", file.read_text()).split("\n")
        for name, file in files.items()
    }


def trainers(process: subprocess.Popen, log: Path, lines: int) -> list[int]:
    """The two processes that node.sh has started, when their log has more than so many lines."""
    while not (log.exists() and log.read_text().count("\n") > lines):
        assert process.poll() is None
        time.sleep(0.5)
    # By name: node.sh has children that sleep, too.
    named = ["pgrep", "-P", str(process.pid), "-f", "rmt_jax.train"]
    found = subprocess.run(named, capture_output=True, text=True).stdout.split()
    assert len(found) == 2
    return [int(number) for number in found]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_of_two_processes_is_told_to_stop(tmp_path, number):
    """Both save at the same step, whichever got the signal, and ask to be started again."""
    command, env = node(2, tmp_path, "stages.0.steps=100000")
    log = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        os.kill(trainers(process, log, 3)[1], number)
        stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 75, stderr[-3000:]
    assert stderr.count("the same command continues from there") == 2
    (saved,) = [int(f.name) for f in (tmp_path / "checkpoints").iterdir() if f.name.isdecimal()]
    # One process continues what two have saved.
    command, env = node(1, tmp_path, "stages.0.steps=100000")
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while json.loads(log.read_text().splitlines()[-1])["step"] < saved + 3:
            assert process.poll() is None
            time.sleep(0.5)
        process.terminate()
        stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 75 and f"continuing from step {saved:,}" in stderr


def test_two_processes_are_told_to_stop_while_they_evaluate(tmp_path):
    """Both end, and ask to be started again; one of them goes on alone."""
    short = ("stages.0.steps=2", "evaluation.batch=100")
    command, env = node(2, tmp_path, *short, "evaluation.lengths=1s,64s", "evaluation.samples=3000")
    answers = tmp_path / "results" / "answers"
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (answers / "qa1_1s.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.terminate()
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == REQUEUE and "Traceback" not in stderr, stderr[-3000:]
    assert [file.name for file in answers.iterdir()] == ["qa1_1s.jsonl"]
    command, env = node(1, tmp_path, *short)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0 and (tmp_path / "results" / "summary.csv").is_file()


@pytest.mark.parametrize("what", ("questions", "texts"))
def test_two_processes_evaluate_as_one(tmp_path, what):
    """They share the batches, the last of which is no whole one; process 0 writes and speaks."""
    command = [sys.executable, "-m", "rmt_jax.evaluate", "--workdir", "multitask", "--batch", "4"]
    if what == "questions":
        command += ["--tasks", "qa1", "--lengths", "1s,2s", "--samples", "17"]
    else:
        rows = [json.dumps({"text": "The sun shone. " * n}) for n in range(3, 12)]
        (tmp_path / "t.jsonl").write_text("\n".join(rows))
        command += ["--perplexity", "--data", str(tmp_path / "t.jsonl")]
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        said = together([*command, "--out", str(out)], processes, tmp_path)
        assert "written" in said[0] and not any("written" in one for one in said[1:])
        found.append(answers_in(out))
    assert found[0] == found[1] and sum(map(len, found[0].values())) > 20


def test_two_processes_train_as_one(tmp_path):
    """The same script starts one process and two: the same losses, and one set of files."""
    curves = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        command, env = node(processes, workdir)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
        curves.append([x["loss"] for x in lines if "loss" in x])
        assert (workdir / "results" / "summary.csv").is_file()
    assert len(curves[0]) == 20 and curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_weights_that_two_processes_share(tmp_path):
    """Split over the devices of both (fsdp=2, a device each), so that neither has the model: born,
    trained, read together, taught, exported; and what one process makes of them on other meshes."""
    split, run, tiny = "mesh.fsdp=2", tmp_path / "run", "evaluation.samples=5"
    short = ("stages.0.steps=6", "checkpoint.every=3", "evaluation.batch=2", tiny)
    command, env = node(2, run, split, *short)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = weights.load(run)

    # One process goes on from the checkpoint, with all weights on each device.
    (run / "results").rename(tmp_path / "results")
    command, env = node(1, run, "mesh.fsdp=1", *short)
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert again.returncode == 0 and "continuing from step 6" in again.stderr, again.stderr[-3000:]
    assert jax.tree.all(jax.tree.map(np.array_equal, trained, weights.load(run)))
    assert answers_in(run / "results") == answers_in(tmp_path / "results")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"mesh": {"data": 1, "fsdp": 2}}))

    # A run from these weights: the losses of one device.
    losses = []
    for processes, mesh in ((2, split), (1, "mesh.data=-1")):
        out = tmp_path / f"from{processes}"
        command, env = node(processes, out, mesh, "stages.0.steps=2", tiny, f"init={run}")
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([x["loss"] for x in lines if "loss" in x])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    rows = [json.dumps({"text": "The sun shone. " * n}) for n in range(3, 8)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    asked = [sys.executable, "-m", "rmt_jax.evaluate", "--workdir", str(run), "--batch", "4"]
    texts = [*asked, "--perplexity", "--data", str(tmp_path / "t.jsonl")]
    asked += ["--tasks", "qa1", "--lengths", "1s,2s", "--samples", "7", "--name", "a/b"]
    taught = [sys.executable, "-m", "rmt_jax.gating", "--workdir", str(run)]
    taught += ["--background", "builtin", "--gates.steps=2", "--gates.batch=8"]
    taught += ["--gates.checked_segments=16", "--gates.texts_mixed=8"]
    for name, command in (("asked", asked), ("texts", texts), ("taught", taught)):
        outs = [tmp_path / f"{name}{processes}" for processes in (1, 2)]
        for processes, out in enumerate(outs, 1):
            said = together([*command, "--out", str(out)], processes, tmp_path, 2 // processes)
            assert "written" in said[0] and not any("written" in one for one in said[1:])
        if name == "asked":
            assert answers_in(outs[0]) == answers_in(outs[1])
    totals = [json.loads((tmp_path / f"texts{n}/perplexity.json").read_text()) for n in (1, 2)]
    nats = [total["bins"][0]["nats"] for total in totals]  # of all texts
    assert nats[0] == pytest.approx(nats[1], rel=1e-5) and nats[0] > 0
    gates = [weights.flatten(weights.load(tmp_path / f"taught{n}")) for n in (1, 2)]
    before = weights.flatten(weights.load(run))
    assert max(np.abs(gates[0][name] - before[name]).max() for name in before) > 5e-4
    for name, value in gates[0].items():
        np.testing.assert_allclose(gates[1][name], value, atol=1e-5, err_msg=name)

    convert.export_weights(tmp_path / "taught2", tmp_path / "out")
    exported = weights.flatten(hub.open_source(tmp_path / "out").params)
    assert all(np.array_equal(exported[name], value) for name, value in gates[1].items())


GONE = "another process of this run is gone"
WORK = """
import os, sys, time
import numpy as np
from jax.experimental import multihost_utils
from rmt_jax import cli
from rmt_jax.config import ConfigError
from rmt_jax.runtime import peers, startup

def main(how):
    startup.join()
    with peers.noticed():
        multihost_utils.process_allgather(np.int32(1))
        number = int(os.environ["PROCESS_ID"])
        if number == int(how[1]) or how[1] == "2":
            if how[0] == "fail":
                raise ConfigError(f"process {number} says why")
            os.kill(os.getpid(), 9)
        if how[0] == "silent":
            time.sleep(100)  # nothing is said between them
        multihost_utils.process_allgather(np.int32(1))

cli.run(main)
"""


@pytest.mark.parametrize("how", ("silent", "kill", "fail"))
@pytest.mark.parametrize("which", (0, 1))
def test_a_process_that_is_gone_is_noticed_within_a_minute(tmp_path, how, which):
    start = time.monotonic()
    running = started([sys.executable, "-c", WORK, how, str(which)], 2, tmp_path, 1)
    said = [process.communicate(timeout=120) for process in running]
    took = time.monotonic() - start
    codes = [process.returncode for process in running]
    assert codes[1 - which] == peers.GONE and said[1 - which][1].count(GONE) == 1, said
    assert codes[which] == (2 if how == "fail" else -signal.SIGKILL), said
    assert "Traceback" not in said[1 - which][1]
    print(f"{how}, process {which}: {took:.0f} s")
    assert took < 60 + 15, took  # to import JAX, too


def test_processes_that_fail_alike_end_with_their_own_code(tmp_path):
    running = started([sys.executable, "-c", WORK, "fail", "2"], 2, tmp_path, 1)
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2], said
    assert all(f"process {n} says why" in one and GONE not in one for n, one in enumerate(said))


@pytest.mark.parametrize("which", (0, 1))
def test_one_of_two_processes_is_killed_while_they_train(tmp_path, which):
    command, env = node(2, tmp_path, "stages.0.steps=100000", "checkpoint.every=3")
    log = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        os.kill(trainers(process, log, 7)[which], signal.SIGKILL)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 137 and stderr.count(GONE) == 1, stderr[-3000:]
    assert "Traceback" not in stderr, stderr[-3000:]
    # One process goes on with what both have saved.
    command, env = node(1, tmp_path, "stages.0.steps=100000", "checkpoint.every=3")
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        before = log.read_text().count("\n")
        while log.read_text().count("\n") < before + 2:
            assert process.poll() is None
            time.sleep(0.5)
        process.terminate()
        stderr = process.communicate(timeout=300)[1]
    assert process.returncode == REQUEUE and "continuing from step" in stderr


@pytest.mark.parametrize("which", (0, 1))
def test_one_of_two_processes_is_killed_while_they_evaluate(tmp_path, which):
    command = [sys.executable, "-m", "rmt_jax.evaluate", "--workdir", "multitask", "--tasks", "qa1"]
    command += ["--lengths", "1s", "--batch", "4", "--out", str(tmp_path / "out")]
    running = started([*command, "--samples", "10000"], 2, tmp_path, 1)
    answers = tmp_path / "out" / "answers" / "qa1_1s.jsonl"
    while not (answers.exists() and answers.read_text().count("\n") > 20):
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    running[which].kill()
    said = [process.communicate(timeout=60)[1] for process in running]
    assert running[1 - which].returncode == peers.GONE, said
    assert said[1 - which].count(GONE) == 1 and "Traceback" not in said[1 - which]
    kept = answers.read_text().count("\n")
    (done,) = together([*command, "--samples", "20"], 1, tmp_path, 1)
    assert "written" in done and answers.read_text().count("\n") == kept
