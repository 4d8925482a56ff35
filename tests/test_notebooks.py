"""The notebooks of docs/notebooks run, and print what they have kept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "inside_the_memory")) for n in NAMES]
)
def test_a_notebook_runs(name):
    pytest.importorskip("nbclient", reason="notebooks need pip install -e '.[docs]'")
    # As a user has it: without the flags by which the tests compile quickly and compute slowly.
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    words = [sys.executable, str(FOLDER / "run.py"), name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=540, env=env)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_kept_what_it_prints(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any(cell.get("outputs") for cell in cells), "python docs/notebooks/run.py --write"
    kept = json.dumps([cell.get("outputs", []) for cell in cells])
    assert "Traceback" not in kept and '"stderr"' not in kept
    assert not re.search(r"(?<![\w.:])/(?:home|root|tmp|work|usr|Users)/", kept), (
        "a path of a machine"
    )
