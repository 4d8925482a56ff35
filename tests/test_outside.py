"""A stranger's backbone, memory cell and task: one file each, and none of ours changes.

The three toys of tests/outside import public names alone. Named in a config, they train on one and
on eight devices, go on where they stopped, are evaluated, asked, planned, exported and imported;
and nothing in the package outside their own rooms knows a cell, a backbone's weights or a task.
"""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import weights

ROOT = Path(__file__).parents[1]
OUTSIDE = ROOT / "tests" / "outside"
CONFIG = str(OUTSIDE / "config.py")


def run(*argv: object, devices: int = 1, code: int = 0) -> str:
    """A command of the package, as a user types it: what it prints."""
    path = os.pathsep.join([str(OUTSIDE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}
    env |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        capture_output=True, text=True, env=env, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(workdir: Path) -> dict[int, float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A whole run on one device."""
    workdir = tmp_path_factory.mktemp("outside") / "run"
    run("rmt_jax.train", "--config", CONFIG, "--workdir", workdir)
    return workdir


def test_they_train_and_are_evaluated(trained):
    found = losses(trained)
    assert list(found) == [2, 3, 4, 6] and found[6] < found[2]
    with open(trained / "results" / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["length"], row["samples"]) for row in rows] == [
        ("echo", "1s", "6"),
        ("echo", "2s", "6"),
    ]
    assert all(float(row["chance"]) == pytest.approx(1 / 6, abs=1e-3) for row in rows)


@pytest.mark.slow
def test_eight_devices_learn_what_one_learns(trained, tmp_path):
    alone = losses(trained)
    for name, mesh in (("data", "data=8"), ("fsdp", "data=1"), ("both", "data=2")):
        sizes = [f"--config.mesh.{mesh}"]
        sizes += ["--config.mesh.fsdp=8"] if name == "fsdp" else []
        sizes += ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"] if name == "both" else []
        workdir = tmp_path / name
        once = ("--config.evaluation.samples=1", "--config.evaluation.lengths=1s")
        run("rmt_jax.train", "--config", CONFIG, "--workdir", workdir, *sizes, *once, devices=8)
        shared = losses(workdir)
        np.testing.assert_allclose(list(shared.values()), list(alone.values()), rtol=2e-4)


def test_a_stopped_run_goes_on(trained, tmp_path):
    """From its checkpoint of step 3, to the same weights."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / weights.FILE).unlink()
    said = run("rmt_jax.train", "--config", CONFIG, "--workdir", workdir)
    assert "continuing from step 3" in said
    again = weights.load(workdir)
    for name, value in weights.flatten(weights.load(trained)).items():
        assert np.array_equal(value, weights.flatten(again)[name]), name


def test_they_are_asked(trained, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Somebody whispered river. It was late. Somebody whispered stone.\n")
    question = ("--question", "Which word was whispered?")
    said = run("rmt_jax.ask", "--workdir", trained, "--file", text, *question)
    assert "read " in said and said.strip()


def test_they_are_planned():
    said = run("rmt_jax.doctor", "--plan", CONFIG, "--devices", 8)
    assert "average" in said and "stage 1" in said and "reading 10M" in said


def test_they_go_out_and_come_back(trained, tmp_path):
    run("rmt_jax.convert", "export", "--workdir", trained, "--out", tmp_path / "out")
    run("rmt_jax.convert", "import", "--from", tmp_path / "out", "--out", tmp_path / "back")
    before, after = (weights.flatten(weights.load(f)) for f in (trained, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name in before:
        assert np.array_equal(before[name], after[name]), name


def test_a_name_that_nobody_registered_is_refused():
    said = run(
        "rmt_jax.train", "--config", CONFIG, "--workdir", "/nowhere/x",
        "--config.model.cell=avarage", code=2,
    )  # fmt: skip
    assert "there is no such memory cell" in said and "Did you mean 'average'" in said


def test_an_option_that_a_cell_does_not_have_is_refused():
    said = run(
        "rmt_jax.train", "--config", CONFIG, "--workdir", "/nowhere/x",
        "--config.model.cell_options.kept=0.5", code=2,
    )  # fmt: skip
    assert "kept" in said and "keep" in said


# What nobody else may know.


def strings(file: Path) -> set[str]:
    """String constants of a module's code, docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    }


def names(file: Path) -> set[str]:
    """Every identifier of a module's code."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imports = (n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)))
    return found | {alias.name for node in imports for alias in node.names}


def modules(outside: str) -> list[Path]:
    package = ROOT / "rmt_jax"
    return [f for f in package.rglob("*.py") if package / outside not in f.parents]


def test_no_module_outside_its_room_names_a_memory_cell():
    """But for the config, which has a default."""
    cells = {name for name in CELLS} - {"none", "average"}
    classes = {CELLS[name].__name__ for name in cells}
    allowed = {"config/schema.py": {"delta"}}
    broken = {}
    for file in modules("models/cells"):
        place = file.relative_to(ROOT / "rmt_jax").as_posix()
        # Two are words, too: a change, keys and values.
        found = (strings(file) & cells) | (names(file) & (classes | cells - {"delta", "kv"}))
        if extra := found - allowed.get(place, set()):
            broken[place] = extra
    assert not broken, broken


def test_no_module_outside_its_room_names_a_backbones_weights():
    known = {"wte", "wpe", "ln_f", "ln_1", "ln_2", "qkv"}
    known |= {"embed_tokens", "attention_norm", "mlp_norm"}
    broken = {}
    for file in modules("models/backbones"):
        place = file.relative_to(ROOT / "rmt_jax").as_posix()
        if place == "models/reference.py":  # GPT-2 on one page, in plain JAX
            continue
        texts = {part for text in strings(file) for part in re.split(r"[/.]", text)}
        if found := (texts | names(file)) & known:
            broken[place] = found
    assert not broken, broken
    assert "gpt2" in BACKBONES


def test_no_module_outside_its_room_names_a_task():
    broken = {
        file.relative_to(ROOT / "rmt_jax").as_posix(): found
        for file in modules("data")
        if (found := {text for text in strings(file) if re.fullmatch(r"qa\d+", text)})
    }
    assert not broken, broken
