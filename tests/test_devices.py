"""Tests about several devices, and of bits of several programs (`conftest.py` says why): each file
of `tests/devices/` in a process with eight CPU devices.

    JAX_NUM_CPU_DEVICES=8 pytest -n 0 tests/devices/checkpoints.py    # one of them, by hand

Eight devices in one process share a pool of threads in which each waits for the others at every
collective operation: too few threads, or two programs at a time, and all may wait for ever.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("devices")
FILES = sorted(file.stem for file in FOLDER.glob("*.py"))
SECONDS = 420  # for one file, on cores that do other things too

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    # XLA's own variable: threads of the pool, which has one for each device otherwise.
    "NPROC": "32",
    # A program has ended before the next one begins.
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
    # A device that keeps the others waiting for 40 seconds, as on an overloaded machine, is no
    # fault; one that does for 200 ends the process, and XLA says which.
    "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=200",
}


def run(file: Path, seconds: float = SECONDS, marks: str = "not slow") -> str:
    """Runs pytest on a file with eight CPU devices and returns what it prints.

    Raises:
      AssertionError: a test failed, or the time was over; with the output.
    """
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs"]
    command += ["-m", marks]
    with subprocess.Popen(
        [*command, str(file)], env=os.environ | ENVIRONMENT, cwd=FOLDER.parents[1], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            pytest.fail(f"{file.name} was not done after {seconds:g} seconds:\n{output}")
    if marks == "slow" and process.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        return output
    assert process.returncode == 0, f"exit status {process.returncode}\n{output}"
    return output


SLOW = ("kernels", "language", "memory")  # a minute each beside other tests


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FILES]
)
def test_on_eight_devices(name):
    output = run(FOLDER / f"{name}.py")
    if " passed" not in output:
        pytest.skip(output[output.index("SKIPPED") :])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_slow_ones_on_eight_devices(name):
    run(FOLDER / f"{name}.py", marks="slow")


def test_failures_and_standstills_are_reported(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("import jax\ndef test_wrong(): assert jax.device_count() == 9, 'not nine'")
    with pytest.raises(AssertionError, match="not nine"):
        run(file)
    file.write_text("import time\ndef test_endless(): time.sleep(1000)")
    with pytest.raises(pytest.fail.Exception, match="wrong.py was not done after 3 seconds"):
        run(file, 3)
