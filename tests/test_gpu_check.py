"""`gpu_check.py`, on a CPU: that it asks all that it should, and can say no."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_check.py")


def check(*words: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, wanted",
    (
        ("gradients", ["rmt"]), ("llama", ["rmt"]), ("lora", ["delta"]),
        ("reading", ["rmt", "rmt", "delta", "delta"]),
        ("cards", ["lora"] * 6),  # three meshes of two cards, three of eight
    ),
)  # fmt: skip
def test_every_part_runs_on_a_cpu(part, wanted):
    done = check("--tiny", "--cells", "rmt", "--seconds", "3000", part)
    assert done.returncode == 0 and done.stdout.endswith("YES\n"), done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [(row[0], row[1].split(",")[0]) for row in rows[1:]] == [
        (f"| {part}", w) for w in wanted
    ]


@pytest.mark.parametrize(
    "words, sentence",
    (
        (("--tiny", "--seconds", "0", "reading"), "NO: reading: all"),
        (("reading",), "JAX finds no GPU here"),
        (("--tiny", "speed"), "no such part: speed"),
    ),
)
def test_it_can_say_no(words, sentence):
    done = check(*words)
    assert done.returncode and sentence in done.stdout + done.stderr
