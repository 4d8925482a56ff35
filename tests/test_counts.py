"""No silent growth of what is computed, moved, held or compiled: against tests/counts.json."""

import json
import subprocess
import sys

import counts
import pytest

pytestmark = pytest.mark.portable

REWRITE = "if that is meant, record it with `python tests/counts.py --write` and say why"


def test_nothing_has_grown():
    record = json.loads(counts.RECORD.read_text()).get(counts.version())
    if record is None:
        missing = f"tests/counts.json has no record for {counts.version()}"
        if counts.version() not in counts.SUPPORTED:
            pytest.skip(f"{missing}, which no supported Python on x86_64 brings")
        pytest.fail(f"{missing}: `python tests/counts.py --write` makes it")
    # A process of its own: what other tests have compiled before must not count.
    done = subprocess.run(
        [sys.executable, counts.__file__], capture_output=True, text=True, cwd=counts.ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    now = json.loads(done.stdout)
    assert not counts.grown(record, now), "; ".join([*counts.grown(record, now), REWRITE])
    assert now.keys() == record.keys(), f"no longer measured: {record.keys() - now.keys()}"


def test_what_counts_as_growth():
    record = {"FLOPs": 1000.0, "compilations": 14}
    assert not counts.grown(record, {"FLOPs": 1050.0, "compilations": 14})
    assert not counts.grown(record, {"FLOPs": 500.0, "compilations": 7})
    assert counts.grown(record, {"FLOPs": 1051.0}) == ["FLOPs grew from 1,000 to 1,051, by 5.1%"]
    assert counts.grown(record, {"compilations": 15})[0].endswith("by 7.1%")
    assert counts.grown(record, {"bytes": 1.0}) == ["bytes is 1 and has no record"]
