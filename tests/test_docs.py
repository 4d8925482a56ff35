"""The commands and the Python of README.md and docs/ run as they are written, on a tiny model; and
the pages hold together: links, names in the code, sentences, and the site that Sphinx builds."""

import importlib
import os
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest
import tiny_run
from commands import exit_code

from rmt_jax import ask, cli
from rmt_jax.config import Data, Texts

ROOT = pages.ROOT
# Pages whose commands no test of this file runs, and why.
NOT_RUN = {
    "docs/RESULTS.md": "says how figures were made, in hours",
    "docs/findings.md": "says how figures were made; test_history.py runs its commands",
    "docs/howto/own_data.md": "test_own_data.py runs its commands one after another",
    "docs/howto/write_task.md": "test_tasks.py trains its task",
    "docs/howto/write_cell.md": "has no commands; tests/outside/ has such a cell",
    "docs/changelog.md": "is CHANGELOG.md",
    "docs/benchmarks/": "are pages of benchmarks/",
    "docs/notebooks/": "test_notebooks.py runs the notebooks",
}
PAGES = [page for page in pages.all_pages() if not page.startswith(tuple(NOT_RUN))]

# Commands that need what a test has not, and what that is.
LEFT_OUT = {
    "ask --web": "a browser; test_pages.py has one, test_ask_web.py its requests",
    "ask .*--file (t|milk).txt": "nothing; test_the_readmes_examples knows the answers",
    "doctor$": "minutes: it measures the machine; test_doctor.py runs it in parts",
    "gating( |$)": "minutes of training; test_gating.py trains a small one",
    "evaluate .*niah": "segments that hold RULER's questions; test_suites.py has some",
    "evaluate .*--suite": "minutes; test_evaluate.py runs the suite",
    "report .*--capacity": "eight trained memories; test_suites.py draws such a picture",
    "lmeval ": "the harness, whose test is in test_lmeval.py",
    "prepare --download": "the network",
    "prepare --pg19": "the network",
    "prepare .*--tokenizer gpt2": "the network",
    r"prepare .*\$SLURM": "a cluster",
    "ask --workdir HuggingFaceTB": "the network; test_chat.py asks in a template",
    "evaluate .*--lengths_by gpt2": "downloads; test_questions.py and test_chat.py have small ones",
    "convert adapter": "a run with adapters; test_lora.py trains one",
    "convert import --from booydar": "the network",
    "doctor --plan .*--config.init": "a model's config.json; test_shapes.py plans with some",
    "doctor --plan .*--compile": "libtpu, and minutes; test_compiled_plan.py compiles small ones",
    "data.tokenizer_recipe": "a folder of books; the tokenizer's test has its result",
}
# Programs that stand in shell blocks beside `python -m rmt_jax.NAME`, and why they are not run.
OTHER_PROGRAMS = {
    "pip": "changes the environment; .ci/run installs",
    "python -m venv": "changes the environment; .ci/run makes one",
    "python -m zipfile": "unpacks what pip fetched",
    "python -m benchmarks": "minutes; test_benchmarks.py runs it in parts",
    "python benchmarks/": "minutes; test_benchmarks.py runs them in parts",
    "pytest": "is this",
    "python tests/": "libtpu; test_tpu.py compiles the same",
    "sphinx-build": "test_the_site_builds",
    "launch/": "a cluster; test_launch.py runs the scripts with stubs",
    "docker": "a daemon; test_launch.py reads the Dockerfile",
    "xpk": "a cluster",
    "cat": "shows a file",
    "echo": "writes a file that the commands below it read",
    "export": "sets what the commands below it read",
    "RMT_JAX_SMOLLM2=": "a download; test_gguf.py says which",
}
# So that a command ends soon.
SHORTER = {"evaluate": ["--samples", "1", "--tasks", "qa1"], "prepare": ["--samples", "1"]}
LONGEST = 40  # words of a sentence


def commands(page: str) -> list[str]:
    """`NAME ARGUMENTS` of each `python -m rmt_jax.NAME ARGUMENTS` in code: spans, blocks, lines."""
    found = []
    for piece in pages.code(re.sub(r"\\\n\s*", " ", pages.read(page))):
        lines = piece.split("\n") if piece.startswith("```") else [piece.replace("\n", " ")]
        for line in lines:
            found += command_in(line.strip("`"))
    return list(dict.fromkeys(found))


def command_in(line: str) -> list[str]:
    match = re.search(r"python -m rmt_jax\.(.+)", line)
    if not match:
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
    story = "Mary took the milk. It rained all night. Mary went to the kitchen."
    (folder / "story.txt").write_text(story)
    evaluate = importlib.import_module("rmt_jax.evaluate")
    words = ["--workdir", str(folder / "runs" / "RUN"), "--lengths", "1s", *SHORTER["evaluate"]]
    assert evaluate.main(words) == 0
    for name in ("a", "b"):
        shutil.copytree(folder / "runs" / "RUN" / "evaluation", folder / "runs" / name / "results")
    return folder


def test_the_readmes_examples(tmp_path, monkeypatch, capsys):
    """Names that nobody trained on; one question, several meanings; somebody who is not there."""
    monkeypatch.chdir(tmp_path)
    block = r"\$ cat (\w+\.txt)\n(.*?)(?=\$ python)(.*?)```"
    shown, asked = re.findall(block, pages.read("README.md"), re.S), 0
    assert [name for name, *_ in shown] == ["t.txt", "milk.txt"]
    for name, text, rest in shown:
        Path(name).write_text(text, encoding="utf-8")
        for words, answer in re.findall(r"\$ python -m rmt_jax\.ask (.*)\n(.*)\n", rest):
            assert exit_code(ask.main, shlex.split(words)) == 0
            assert capsys.readouterr().out.strip() == answer, words
            asked += 1
    assert asked == 4


def test_each_left_out_command_is_on_a_page():
    written = [command for page in PAGES for command in commands(page)]
    unused = [p for p in LEFT_OUT if not any(re.match(p, command) for command in written)]
    assert not unused, f"no page has these commands: take them out of LEFT_OUT: {unused}"
    everywhere = "\n".join(map(pages.read, pages.all_pages()))
    unused = [name for name in OTHER_PROGRAMS if name not in everywhere]
    assert not unused, f"no page has these programs: take them out: {unused}"


SLOW = ("perturb.md", "evaluate.md")


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * p.endswith(SLOW)) for p in PAGES]
)
def test_commands_run(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("builtins.input", lambda _: "")  # no more questions
    before = [command for one in PAGES[: PAGES.index(page)] for command in commands(one)]
    for command in commands(page):
        if left_out(command) or command in before:
            continue
        name, *words = shlex.split(command)
        if name == "train":  # hours; test_train.py runs the first. This reads and checks its config
            if "--help" not in words:
                cli.parse(words, "")
            continue
        code = "report.__main__" if name == "report" else name
        more = [] if "--perplexity" in words else SHORTER.get(name, [])
        status = importlib.import_module(f"rmt_jax.{code}").main([*words, *more])
        said = capsys.readouterr()
        assert status == 0, f"{command}\n{said.out}\n{said.err}"
        assert "Traceback" not in said.err, f"{command}\n{said.err}"


@pytest.mark.parametrize("page", pages.all_pages())
def test_no_program_in_a_shell_block_is_unknown(page):
    """A block without a language that begins with a program is one for the shell, as is bash."""
    unknown = []
    for language, block in re.findall(r"```(\w*)\n(.*?)```", pages.read(page), re.S):
        lines = re.sub(r"\\\n\s*", " ", block).split("\n")
        lines = [line.removeprefix("$ ").removeprefix("!").strip() for line in lines]
        known = ("python -m rmt_jax.", *OTHER_PROGRAMS)
        if language not in ("", "bash") or not lines[0].startswith(("python", *known)):
            continue
        if lines[0].startswith("cat "):
            continue  # a session with its output
        unknown += [x for x in lines if x and x[0] != "#" and not x.startswith(known)]
    assert not unknown, f"{page}: run these in a test, or give OTHER_PROGRAMS a reason: {unknown}"


def test_the_story_of_the_quickstart_has_its_answer(place, monkeypatch, capsys):
    page = pages.read("docs/quickstart.md")
    found = re.search(r"echo '(.*)' > story\.txt\n.*--question '(.*)'\n```\n\nprints `(\w+)`", page)
    assert found, "the quickstart asks no story.txt"
    monkeypatch.chdir(place)
    assert Path("story.txt").read_text() == found[1]
    ask = importlib.import_module("rmt_jax.ask")
    assert ask.main(["--file", "story.txt", "--question", found[2], "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == found[3]


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    for block in re.findall(r"```python\n(.*?)```", pages.read(page), re.S):
        if "import rmt_jax" in block:
            tokens = np.ones((2, 2 * tiny_run.LENGTH), np.int32)
            exec(compile(block, page, "exec"), {"tokens": tokens})


@pytest.mark.parametrize("page", [*pages.all_pages(), "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    bad = []
    for link in pages.links(pages.read(page)):
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        there = target.exists() and target.is_relative_to(ROOT)
        if there and anchor:
            there = anchor in pages.anchors(pages.read(target.relative_to(ROOT).as_posix()))
        bad += [] if there else [link]
    assert not bad, f"{page}: these links lead nowhere: {bad}"


def test_pages_that_the_code_names_exist():
    """Docstrings, comments and messages that say docs/…, in every file but the pages themselves."""
    bad = []
    kinds = (".py", ".toml", ".yml", ".yaml", ".sh", ".md", ".cff", ".sbatch")
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT)
        if path.suffix not in kinds or inside.parts[0] in ("docs", ".git", "build", "dist"):
            continue
        for name in re.findall(r"(?<![\w/])docs/[\w/.-]*\w", path.read_text(encoding="utf-8")):
            if "." in name and not (ROOT / name).exists():
                bad.append(f"{inside}: {name}")
    assert not bad, f"no such pages: {bad}"


@pytest.mark.parametrize("page", [*pages.all_pages(), "CHANGELOG.md", "CONTRIBUTING.md"])
def test_names_on_a_page_are_in_the_package(page):
    """Modules, functions and classes that stand in a sentence, as `rmt_jax.load`."""
    for name in re.findall(r"`(rmt_jax(?:\.\w+)+)", pages.read(page)):
        if name.rpartition(".")[2] not in ("json", "safetensors"):  # files
            assert pydoc.locate(name) is not None, f"{page}: there is no {name}"


@pytest.mark.parametrize("page", [page for page in pages.all_pages() if "benchmarks/" not in page])
def test_sentences_are_short(page):
    long = [one for one in pages.sentences(pages.read(page)) if len(one.split()) > LONGEST]
    assert not long, f"{page}: over {LONGEST} words:\n" + "\n\n".join(long)


@pytest.mark.parametrize("page", pages.all_pages())
def test_no_private_words(page):
    """Of the package's own floors and rooms CONTRIBUTING.md alone speaks."""
    found = re.findall(r"\b(?:house|floors?|rooms)\b", pages.prose(pages.read(page)))
    assert not found, f"{page}: {found}"


def test_the_site_builds(tmp_path):
    """With warnings as errors, and an error for every reference that leads nowhere."""
    pytest.importorskip("myst_nb", reason="the site needs pip install -e '.[docs]'")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-j", "1"]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [*words, str(pages.DOCS), str(tmp_path / "site")],
        capture_output=True, text=True, env=env, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = (tmp_path / "site" / "api" / "load.html").read_text(encoding="utf-8")
    assert "rmt_jax.api.Model.answers" in built
    assert (tmp_path / "site" / "notebooks" / "ask_a_book.html").is_file()
