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

import pytest

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_of_two_processes_is_told_to_stop(tmp_path, number):
    """Both save at the same step, whichever got the signal, and ask to be started again."""
    command, env = node(2, tmp_path, "stages.0.steps=100000")
    log = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None
            time.sleep(0.5)
        children = subprocess.run(
            # By name: node.sh has children that sleep, too.
            ["pgrep", "-P", str(process.pid), "-f", "rmt_jax.train"],
            capture_output=True,
            text=True,
        ).stdout.split()
        assert len(children) == 2
        os.kill(int(children[-1]), number)
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
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        running = []
        for number in range(processes):
            env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
            if processes > 1:
                env |= {"COORDINATOR_ADDRESS": f"localhost:{port}", "NUM_PROCESSES": "2"}
                env["PROCESS_ID"] = str(number)
            running.append(
                subprocess.Popen(
                    [*command, "--out", str(out)], env=env, cwd=tmp_path, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        said = [process.communicate(timeout=300) for process in running]
        assert not any(process.returncode for process in running), said
        assert "written" in said[0][0] and not any("written" in one for one, _ in said[1:])
        files = {file.relative_to(out): file for file in out.rglob("*.json*")}
        found.append({
            name: re.sub(r'"seconds": [0-9.e-]+', "", file.read_text()).split("\n")
            for name, file in files.items()
        })  # fmt: skip
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
