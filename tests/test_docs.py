"""The commands and the Python of README.md and docs/ run as they are written, on a tiny model."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from rmt_jax import cli
from rmt_jax.config import Data, Texts

ROOT = Path(__file__).parents[1]
# findings.md and RESULTS.md say how figures were made, with the code of that day, in hours.
PAGES = (
    "README.md",
    "docs/data.md",
    "docs/evaluate.md",
    "docs/scale.md",
    "docs/weights.md",
    "docs/backbones.md",
    "docs/language.md",
    "docs/suites.md",
    "docs/howto/inspect.md",
)

# Commands that need what a test has not, and what that is.
LEFT_OUT = {
    "ask --web": "a browser; test_pages.py has one, test_ask_web.py its requests",
    "ask --file t.txt": "nothing; test_ask.py runs it and knows the answer",
    "doctor$": "minutes: it measures the machine; test_doctor.py runs it in parts",
    "gating ": "minutes of training; test_gating.py trains a small one",
    "evaluate .*niah": "segments that hold RULER's questions; test_suites.py has some",
    "report .*--capacity": "eight trained memories; test_suites.py draws such a picture",
    "lmeval ": "the harness, whose test is in test_lmeval.py",
    "prepare --download": "the network",
    "prepare --pg19": "the network",
    "prepare .*--tokenizer gpt2": "the network",
    r"prepare .*\$SLURM": "a cluster",
    "ask --workdir HuggingFaceTB": "the network; test_chat.py asks in a template",
    "convert adapter": "a run with adapters; test_lora.py trains one",
    "convert import --from booydar": "the network",
    "doctor --plan .*--config.init": "a model's config.json; test_shapes.py plans with some",
    "data.tokenizer_recipe": "a folder of books; the tokenizer's test has its result",
}
# So that a command ends soon.
SHORTER = {"evaluate": ["--samples", "1", "--tasks", "qa1"], "prepare": ["--samples", "1"]}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """`NAME ARGUMENTS` of each `python -m rmt_jax.NAME ARGUMENTS` in code: spans, blocks, lines."""
    text = re.sub(r"\\\n\s*", " ", read(page))
    code = re.findall(r"```.*?```|^ {4}[^\n]*|`[^`]+`", text, re.S | re.M)
    found = []
    for piece in code:
        lines = piece.split("\n") if piece.startswith("```") else [piece.replace("\n", " ")]
        for line in lines:
            found += command_in(line.strip("`"))
    return list(dict.fromkeys(found))


def command_in(line: str) -> list[str]:
    match = re.search(r"python -m rmt_jax\.(.+)", line)
    if not match or line.lstrip().startswith("on_all"):
        return []
    command = re.sub(r"\[[^\]]*\]|…|&&.*|\s#.*", "", match[1])  # options, and so on
    if command.count("'") % 2:  # it stands in quotes itself
        command = command.rstrip().removesuffix("'")
    return [" ".join(command.split())]


def left_out(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in LEFT_OUT)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that holds what the commands name."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    for name in ("mine", "RUN", "a", "b"):
        tiny_run.save(folder / "runs" / name, tiny_run.config())
    texts = Data(tasks=("novels",), texts={"novels": Texts(train="builtin")})
    tiny_run.save(folder / "runs" / "novels", tiny_run.config().replace(data=texts))
    (folder / "FOLDER_OR_HUB_NAME").symlink_to(folder / "runs" / "RUN")
    (folder / "RUN").symlink_to(folder / "runs" / "RUN" / "evaluation")
    (folder / "book.txt").write_text("Mary went to the garden. The sun shone on the house. " * 20)
    return folder


def test_each_left_out_command_is_on_a_page():
    written = [command for page in PAGES for command in commands(page)]
    unused = [p for p in LEFT_OUT if not any(re.match(p, command) for command in written)]
    assert not unused, f"no page has these commands: take them out of LEFT_OUT: {unused}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("builtins.input", lambda _: "")  # no more questions
    before = [command for one in PAGES[: PAGES.index(page)] for command in commands(one)]
    for command in commands(page):
        if left_out(command) or command in before:
            continue
        name, *words = shlex.split(command)
        if name == "train":  # hours; test_train.py runs the first. This reads and checks its config
            cli.parse(words, "")
            continue
        code = "report.__main__" if name == "report" else name
        more = [] if "--perplexity" in words else SHORTER.get(name, [])
        status = importlib.import_module(f"rmt_jax.{code}").main([*words, *more])
        said = capsys.readouterr()
        assert status == 0, f"{command}\n{said.out}\n{said.err}"
        assert "Traceback" not in said.err, f"{command}\n{said.err}"


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in re.findall(r"```python\n(.*?)```", read(page), re.S):
        if "import rmt_jax" in block:
            tokens = np.ones((2, 2 * tiny_run.LENGTH), np.int32)
            exec(compile(block, page, "exec"), {"tokens": tokens})
