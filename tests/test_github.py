"""What GitHub and others read of the repository: workflows, forms, the citation, the hooks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rmt_jax.__main__ import COMMANDS

yaml = pytest.importorskip("yaml", reason="workflows are YAML: pip install pyyaml")

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": [
        file for file in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if file.stem != "config"
    ],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot": [GITHUB / "dependabot.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}


def read(file: Path) -> dict:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}  # YAML 1.1


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_fit_their_schemas(schema):
    pytest.importorskip("check_jsonschema", reason="the schemas: pip install -e '.[test]'")
    assert SCHEMAS[schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *map(str, SCHEMAS[schema])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_is_a_workflow_for_each_job():
    assert {file.stem for file in WORKFLOWS} == {"tests", "docs", "release", "image"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_may_do_little(file):
    """Nothing is written but where a job says so; a publishing job can do nothing but publish."""
    workflow = read(file)
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90 and "latest" not in job["runs-on"]
        if "permissions" in job:
            assert (file.stem, name, job["permissions"]) == (
                "release",
                "publish",
                {"id-token": "write"},
            )
            assert job["environment"] == "release" and len(job["steps"]) == 2
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # Text that others choose (a branch's or a tag's name) reaches a script as a variable alone.
        assert "${{" not in step.get("run", "")
    assert "pull_request_target" not in workflow["on"] and "secrets." not in file.read_text()


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_call_what_is_there(file):
    if file.stem == "docs" and not (ROOT / "docs" / "conf.py").is_file():
        pytest.skip("docs/ is not a site here: it has no conf.py")
    script = "\n".join(step.get("run", "") for step in steps(read(file)))
    for extra in re.findall(r"\.\[([\w,-]+)\]", script):
        assert set(extra.split(",")) <= set(PROJECT["project"]["optional-dependencies"]), extra
    for path in re.findall(r"(?:^|\s)(\.?[\w-]+/[\w./-]+)", script):
        if not path.startswith("dist/") and "_build" not in path:
            assert (ROOT / path).exists(), path
    for step in steps(read(file)):
        for key in ("file", "cache-dependency-path"):
            assert (ROOT / step.get("with", {}).get(key, "pyproject.toml")).is_file()


def test_tests_run_on_each_python_that_the_package_takes():
    tests = read(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]
    pythons = tests["strategy"]["matrix"]["python"]
    classifiers = PROJECT["project"]["classifiers"]
    assert pythons == [one.split()[-1] for one in classifiers if re.search(r":: 3\.\d+$", one)]
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]},<3.{int(pythons[-1][2:]) + 1}"
    assert any(step.get("run") == ".ci/run" for step in tests["steps"])


def test_the_image_runs_every_command():
    known = re.search(r"^  (train[^)]*)\)", (ROOT / "launch" / "entry.sh").read_text(), re.M)
    assert known and known[1].split(" | ") == list(COMMANDS)
    copied = (ROOT / "launch" / "Dockerfile").read_text()
    assert re.search(r"^COPY pyproject.toml setup.py README.md LICENSE", copied, re.M)
    words = [
        step["run"].split(" rmt_jax:ci ")[1].split()
        for step in steps(read(GITHUB / "workflows" / "image.yml"))
        if "run" in step
    ]
    assert words and all(command[0] in COMMANDS for command in words)


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    paper = citation["preferred-citation"]
    assert [one["family-names"] for one in paper["authors"]] == ["Bulatov", "Kuratov", "Burtsev"]
    assert paper["year"] == 2025 and paper["title"].startswith("Mastering Long-Context Multi-Task")


def test_hooks_are_those_of_ci():
    hooks = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook.get("entry", "") for repo in hooks for hook in repo["hooks"]]
    script = (ROOT / ".ci" / "run").read_text().replace('"', "")
    for tool in ("ruff format", "ruff check"):
        assert any(entry.startswith(tool) for entry in entries) and tool in script


def test_forms_ask_for_the_command_and_the_machine():
    for file in SCHEMAS["github-issue-forms"]:
        ids = [part["id"] for part in read(file)["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))
    assert "doctor" in (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_nobody_is_given_an_address_that_is_not_there(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"[\w.]+@[\w.]+|https?://", text)
    for path in re.findall(r"`((?:tests|rmt_jax|docs)/[\w./]+)`", text):
        assert (ROOT / path).is_file(), path
