"""`rmt-jax NAME`, and the configs that have names without a path."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmt_jax import __main__ as console
from rmt_jax import cli
from rmt_jax.config import Config, ConfigError, files
from rmt_jax.errors import RmtError

pytestmark = pytest.mark.portable

ROOT = Path(__file__).parents[1]
PACKAGE = Path(console.__file__).parent
NAMES = ("language", "multitask", "pretrain", "recall", "tickets")
MINE = """
from rmt_jax.config import Config
def get_config(preset="mine"):
    return Config(init=preset)
"""


@pytest.fixture(autouse=True)
def same_program(monkeypatch):
    monkeypatch.setattr(cli.Parser, "program", cli.MODULES)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_every_command_of_the_package_is_a_sub_command():
    modules = {
        file.stem
        for file in PACKAGE.glob("*.py")
        if "cli.run(main" in file.read_text() and file.stem != "__main__"
    }
    assert modules | {"report"} == set(console.COMMANDS)


def test_help_names_commands_configs_and_models(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert console.main(words) == 0
    told = capsys.readouterr().out
    for name in (*console.COMMANDS, *files.bundled(), "multitask-wide"):
        assert re.search(rf"\b{name}\b", told), name


@pytest.mark.parametrize("started", ["/usr/bin/rmt-jax", "rmt-jax.exe", "/x/rmt_jax/__main__.py"])
def test_usage_says_how_it_was_started(started, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started])
    program = "rmt-jax" if "-" in started else "python -m rmt_jax"
    console.main([])
    assert capsys.readouterr().out.startswith(f"usage: {program} COMMAND")
    for words, usage in ((["ask"], "ask [-h]"), (["convert", "mean"], "convert mean [-h]")):
        with pytest.raises(SystemExit) as stopped:
            console.main([*words, "--help"])
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {program} {usage}")


def test_a_wrong_command_is_a_sentence():
    with pytest.raises(cli.Usage, match="There is no command 'trian': .* Did you mean train?"):
        console.main(["trian", "--config", "multitask"])
    with pytest.raises(cli.Usage, match="--config is missing"):
        console.main(["train"])


def test_as_a_module():
    def said(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=True
        ).stdout

    assert said("rmt_jax", "--version").startswith("rmt_jax 0.")
    first, second = said("rmt_jax", "ask", "--help"), said("rmt_jax.ask", "--help")
    plain = [
        " ".join(text.replace("rmt_jax.ask", "rmt_jax ask").split()) for text in (first, second)
    ]
    assert plain[0] == plain[1]


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "rmt_jax.train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_a_bundled_config_is_its_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert set(files.bundled()) == {*NAMES, "history"}
    before = list(sys.path)
    for name in NAMES:
        file = files.bundled()[name]
        assert cli.load_config(name) == cli.load_config(f"{name}:") == cli.load_config(str(file))
        sys.path[:] = before
    assert cli.load_config("multitask:gpt2") == cli.load_config(
        f"{files.bundled()['multitask']}:gpt2"
    )
    cli.load_config("recall:rmt")
    assert str(files.bundled()["recall"].parent) not in sys.path[len(before) :]


def test_a_file_here_wins_or_the_name_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("multitask").mkdir()  # a run's folder is no config
    assert cli.load_config("multitask:small").init == "backbone-ten"
    Path("recall").write_text(MINE)
    assert cli.load_config("recall") == Config(init="mine")
    own = Path("multitask.py")
    own.write_text(MINE)
    assert cli.load_config("multitask.py:yours").init == "yours"
    with pytest.raises(ConfigError) as caught:
        cli.load_config("multitask:gpt2")
    first, second = re.findall(r"(\S+\.py:gpt2) for the", str(caught.value))
    assert cli.load_config(first).init == "gpt2" and cli.load_config(second).model.layers == 12
    monkeypatch.chdir(files.bundled()["recall"].parent)  # the same file, whatever it is called
    assert cli.load_config("recall:rmt").model.cell == "rmt"


@pytest.mark.parametrize(
    "name", ["multitaks", "multitaks:gpt2", "runs/multitask", "", ":gpt2", "a b"]
)
def test_a_wrong_name_lists_what_there_is(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RmtError, match="There is no config file .* language, multitask, pretrain"):
        cli.load_config(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_preset_lists_what_there_is(name):
    with pytest.raises(RmtError, match="has no preset 'gpt3'"):
        cli.load_config(f"{name}:gpt3")


def test_configs_need_nothing_but_the_config_package():
    for file in (ROOT / "configs" / f"{name}.py" for name in NAMES):
        modules = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules.add(str(node.module))
        assert {name for name in modules if name not in sys.stdlib_module_names} == {
            "rmt_jax.config"
        }
        assert "sys" not in modules and "importlib" not in modules
