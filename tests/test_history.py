"""The runs behind docs/findings.md: each can be run again and drawn, and the table says what the
logs say."""

import csv
import json
import re
from pathlib import Path

import pytest
import tiny_run

from rmt_jax import cli
from rmt_jax.config import from_dict, to_dict
from rmt_jax.report import ReportError, history
from rmt_jax.report.__main__ import main
from rmt_jax.validation import validate

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not history.FILE.is_file(), reason="docs/ is in a checkout only")


@pytest.fixture(scope="module")
def runs():
    return history.load()


@pytest.fixture(scope="module")
def rows():
    with open(ROOT / "docs" / "experiments.csv", encoding="utf-8", newline="") as lines:
        return {row["id"]: row for row in csv.DictReader(lines)}


def test_every_run_has_a_row_and_parents_that_are_there(runs, rows):
    assert list(rows) == list(runs)
    for row in rows.values():
        assert row["what_differs"] and set(row["parent"].split()) <= set(rows) - {row["id"]}


def minutes(lines):
    """Of all starts: the clock begins anew where a stopped run goes on."""
    before = clock = step = 0
    for line in lines:
        if line["step"] > step and line.get("seconds", 0) < clock:
            before, clock = before + clock, 0
        step, clock = line["step"], max(clock, line.get("seconds", 0))
    return (before + clock) / 60


def test_the_table_says_what_the_logs_say(runs, rows):
    for name, run in runs.items():
        row, lines = rows[name], run["metrics"]
        assert float(row["minutes"]) == pytest.approx(minutes(lines), abs=0.06)
        if name != "34-wide":  # its log has every hundredth step
            assert int(row["steps"]) == max(line["step"] for line in lines)
        checks = [line["validation"] for line in lines if "validation" in line]
        lengths = row["validation_lengths"].split()
        if not checks:
            assert not lengths
            continue
        tasks = [t for t in ("qa1", "qa2", "qa3", "qa4", "qa5") if row[t]]
        for place, mean in enumerate(map(float, row["validation_mean"].split())):
            found = [
                checks[-1][t][lengths[place]] for t in tasks if lengths[place] in checks[-1][t]
            ]
            assert mean == pytest.approx(100 * sum(found) / len(found), abs=0.06)


def test_every_config_is_one_of_today(runs):
    without = {name for name, run in runs.items() if run["config"] is None}
    assert without == {"38-gates", "40-gates", "44-gates"}
    for name in runs.keys() - without:
        config = from_dict(runs[name]["config"])
        validate(config)
        assert to_dict(config) == runs[name]["config"]


def test_a_run_is_a_config_file(runs):
    file = ROOT / "configs" / "history.py"
    assert to_dict(cli.load_config(f"{file}:24-long")) == runs["24-long"]["config"]
    with pytest.raises(
        ReportError, match=rf"no run '24-lang' among the {len(runs)}\. Near it: 24-lon"
    ):
        cli.load_config(f"{file}:24-lang")
    with pytest.raises(ValueError, match="The run 40-gates left no config"):
        cli.load_config(f"{file}:40-gates")


def test_findings_name_runs_that_are_there(runs):
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    named = {n for n in re.findall(r"`(\d+-[\w.-]+)`", text)}
    assert named <= set(runs) and len(named) > 60


def test_runs_are_listed_and_drawn(tmp_path, capsys, rows):
    assert main(["--history"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(rows) + 1 and any(line.startswith("24-long ") for line in shown)
    assert main(["--history", "24-long", "46-gates", "40-gates", "--out", str(tmp_path)]) == 0
    drawn = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    logs = {f"{name}/metrics.jsonl" for name in ("24-long", "46-gates", "40-gates")}
    configs = {"24-long/config.json", "46-gates/config.json"}
    assert drawn == logs | configs | {"24-long/curves.png", "24-long/curves.pdf"}
    assert (tmp_path / "24-long" / "curves.png").read_bytes()[1:4] == b"PNG"


def test_a_run_is_put_among_them(tmp_path, runs):
    file, run = tmp_path / "experiments.json.xz", tmp_path / "run"
    file.write_bytes(history.FILE.read_bytes())
    tiny_run.save(run, tiny_run.config())
    with pytest.raises(ReportError, match=r"run has no metrics.jsonl: name the folder of a run\."):
        history.add("51-mine", run, file)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "accuracy": {"qa1": 0.5}}\n')
    history.add("51-mine", run, file)
    packed = history.load(file)
    assert packed["51-mine"]["metrics"][0]["loss"] == 2.5 and len(packed) == len(runs) + 1
    assert packed["51-mine"]["config"] == json.loads((run / "config.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"), [(None, "come with a checkout"), (b"junk", "can't be read")]
)
def test_a_missing_or_damaged_file_is_said(content, message, tmp_path):
    file = tmp_path / "experiments.json.xz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ReportError, match=message):
        history.load(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name one folder or more"),
        (["--add", "run"], "say --history ID --add RUN"),
        (["--history", "--add", "run"], "--add takes one id, but got 0"),
        (["--history", "24"], "There is no run '24'"),
    ],
)
def test_wrong_words_get_a_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReportError, match=message):
        main(words)
