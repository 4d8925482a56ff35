"""The house keeps its floors: a file imports from its own floor or below, never up."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "rmt_jax"

FLOORS = {
    0: ("shapes", "config", "validation", "command", "workdir", "__init__"),
    1: ("models", "data", "scores"),
    2: (
        "losses",
        "metrics",
        "optimizer",
        "sharding",
        "startup",
        "cluster",
        "stopping",
        "rescue",
        "progress",
        "hardware",
        "costs",
        "plan",
        "trackers",
        "report",
    ),
    3: ("steps", "decoding", "checkpoint"),
    4: ("api", "evaluation", "evaluate", "lmeval", "loop"),
    5: ("training", "train", "gating", "ask", "prepare", "convert", "doctor"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def imports(file: Path) -> set[str]:
    """Rooms of the house that a file imports, also inside functions."""
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


def test_every_room_has_a_floor():
    assert {room(f) for f in ROOT.rglob("*.py")} <= set(FLOOR)


def test_imports_go_down():
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in ROOT.rglob("*.py")
        if room(file) != "__init__"
        for name in imports(file) & set(FLOOR)
        if FLOOR[name] > FLOOR[room(file)]
    ]
    assert not broken, broken


def test_models_and_data_are_strangers():
    for file in (ROOT / "models").glob("*.py"):
        assert "data" not in imports(file), file
    for file in (ROOT / "data").glob("*.py"):
        assert "models" not in imports(file), file


def test_no_file_outgrows_its_room():
    long = {
        str(f.relative_to(ROOT)): n
        for f in ROOT.rglob("*.py")
        if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"over 400 lines: {long}"
