"""The package as a stranger gets it: built, checked, installed in a fresh environment, and used in
an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="building the package needs 'build': pip install -e '.[test]'")
pytest.importorskip("twine", reason="checking the package needs twine: pip install -e '.[test]'")

ROOT = Path(__file__).parents[1]
NAME = "rmt_jax-0.1.0"
# What a build reads, and folders that it must leave out.
TREE = ("rmt_jax", "configs", "tests", "docs", "launch", "benchmarks")
FILES = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "setup.py")
# Of the test-suite, files that ask for the installed package and what it brings.
SUITE = ("test_console.py", "test_files.py", "test_scores.py", "test_sampling.py")
SMALLER = {
    "model.layers": "1",
    "model.width": "16",
    "stages.0.steps": "2",
    "stages.1.steps": "0",
    "stages.1.segments": "1",
    "stages.1.background": "0.5",
    "evaluation.lengths": "1s",
    "evaluation.samples": "2",
}


def call(*command: object, cwd: Path, **more: str) -> str:
    """Standard output of a command that ends well, without this checkout on its path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, env=env | more
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of what the sdist holds."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info", "_build", "runs")
    for name in TREE:
        shutil.copytree(ROOT / name, source / name, ignore=junk)
    for name in (*FILES, "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    out = folder / "dist"
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=folder)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The scripts of a fresh environment with the wheel, and what this one has of others."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    scripts = folder / "venv" / "bin"
    (own,) = (folder / "venv").glob("lib/python3*/site-packages")
    # Folders named by a .pth file come after the environment's own, and their .pth files, such as
    # that of an editable install, are not read.
    others = [path for path in sys.path if path.endswith("-packages")]
    (own / "others.pth").write_text("\n".join(others))
    options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", *options)
    call(*pip, built[1], cwd=folder)
    return scripts


def files_below(folder: str, *endings: str) -> set[str]:
    return {
        str(file.relative_to(ROOT))
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix in endings
    }


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as file:
        held = {name for name in file.namelist() if not name.endswith("/")}
        entry_points = file.read(f"{NAME}.dist-info/entry_points.txt").decode()
        told = file.read(f"{NAME}.dist-info/METADATA").decode()
    code = files_below("rmt_jax", ".py", ".typed", ".js", ".css")
    presets = {f"rmt_jax/{name}" for name in files_below("configs", ".py", ".jsonl")}
    assets = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "rmt_jax" / "assets").rglob("*")
        if file.is_file()
    }
    assert "rmt_jax/py.typed" in code and "rmt_jax/configs/tickets.jsonl" in presets
    assert len(assets) > 10 and any("weights.safetensors" in name for name in assets)
    ours = {name for name in held if not name.startswith(f"{NAME}.dist-info/")}
    assert ours == code | presets | assets
    assert f"{NAME}.dist-info/licenses/LICENSE" in held
    assert "rmt-jax = rmt_jax.__main__:run" in entry_points
    for line in ("License-Expression: Apache-2.0", "Requires-Python: <3.14,>=3.11"):
        assert line in told.splitlines()
    assert "Provides-Extra: cuda12" in told and "Classifier: Typing :: Typed" in told
    assert "-Email:" not in told and "\n# " in told  # the README is its description
    assert built[1].stat().st_size < 20e6


def test_the_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built[0]) as file:
        held = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
    assert files_below("configs", ".py", ".jsonl") | files_below("rmt_jax", ".py") <= held
    assert {*FILES, "pyproject.toml", "rmt_jax/py.typed"} <= held
    assert not {name.split("/")[0] for name in held} & {"tests", "docs", "launch", "benchmarks"}


def test_twine_finds_nothing(built, tmp_path):
    told = call(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=tmp_path)
    assert told.count("PASSED") == 2


def test_commands_in_an_empty_folder(installed, tmp_path):
    command = installed / "rmt-jax"
    assert call(command, "--help", cwd=tmp_path).startswith("usage: rmt-jax COMMAND")
    assert call(command, "--version", cwd=tmp_path) == f"{NAME.replace('-', ' ')}\n"
    assert "200" in call(command, "prepare", "--config", "tickets", cwd=tmp_path)
    settings = [f"--config.{name}={value}" for name, value in SMALLER.items()]
    call(
        command,
        "train",
        "--config",
        "multitask:smoke",
        "--workdir",
        "mine",
        *settings,
        cwd=tmp_path,
    )
    assert (tmp_path / "mine" / "results" / "summary.csv").is_file()
    (tmp_path / "t.txt").write_text("Mary went to the garden. The sun shone. John took the milk.")
    words = ("ask", "--file", "t.txt", "--question", "Where is Mary?", "--quiet")
    assert call(command, *words, cwd=tmp_path) == "garden\n"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "t.txt"}


@pytest.mark.slow
def test_the_suite_on_the_installed_package(installed, tmp_path):
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("golden"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "test_where.py").write_text(
        "from pathlib import Path\n\nimport rmt_jax\n\n\n"
        "def test_it_is_the_installed_one():\n"
        f"    assert Path(rmt_jax.__file__).is_relative_to({str(installed.parent)!r})\n"
    )
    suite = [f"tests/{name}" for name in (*SUITE, "test_where.py")]
    told = call(installed / "python", "-P", "-m", "pytest", "-n", "0", *suite, cwd=tmp_path)
    assert "[100%]" in told
