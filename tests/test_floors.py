"""Imports go down: a module imports from its own floor or a lower one, never from a higher one.

CONTRIBUTING.md draws the map. Every module of a room counts, however deep it lies.
"""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[1] / "rmt_jax"

FLOORS = (
    (
        "__init__",
        "config",
        "validation",
        "types",
        "scores",
        "results",
        "errors",
        "registry",
        "cli",
        "files",
        "gguf_file",
    ),
    ("models", "data", "runtime"),
    ("report",),
    ("api", "placement", "checkpoint_tokenizer", "evaluation", "conversion"),
    ("training",),
    ("train", "evaluate", "ask", "prepare", "convert", "gating", "doctor", "lmeval", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(file: Path) -> set[str]:
    """Rooms that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "rmt_jax":
                names = [f"rmt_jax.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("rmt_jax.")}
    return found


def room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return list(ROOT.rglob("*.py"))


def test_every_room_has_a_floor():
    assert {room(file) for file in modules()} <= set(FLOOR)


def test_imports_go_down():
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules()
        for name in imports(file) & set(FLOOR)
        if room(file) != "__init__" and FLOOR[name] > FLOOR[room(file)]
    ]
    assert not broken, broken


def test_rooms_of_the_second_floor_are_strangers():
    strangers = {"models", "data", "runtime"}
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules()
        if room(file) in strangers
        for name in imports(file) & strangers - {room(file)}
    ]
    assert not broken, broken


def test_reports_know_no_model():
    """Tables and pictures are made of results; what a model is, their caller says in words."""
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules()
        if room(file) == "report"
        for name in imports(file) & {"models", "data", "runtime", "api"}
    ]
    assert not broken, broken


def test_no_file_outgrows_its_room():
    long = {
        str(file.relative_to(ROOT)): lines
        for file in modules()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"over 400 lines: {long}"
