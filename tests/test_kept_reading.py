"""An evaluation that was stopped in the middle of its texts goes on there, to the bit."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

from rmt_jax import api
from rmt_jax.evaluation import answering, evaluate, kept_reading
from rmt_jax.results import EvalResult
from rmt_jax.runtime.preemption import REQUEUE, Stopped
from rmt_jax.types import Prompt

ROOT = Path(__file__).parents[1]
WHAT = {"tasks": ["qa1"], "lengths": ["20s"], "samples": 3, "batch": 2, "progress": False}


@pytest.fixture(scope="module")
def model():
    return api.load("multitask")


class Watched:
    """Notes what a model reads, and what memory its answers come from; stops it where it is told
    to."""

    def __init__(self, monkeypatch, stop_after: int = 0):
        self.blocks, self.memories, self.stop_after = 0, [], stop_after
        read, generate = api.Model.read, api.Model.generate_from

        def watched_read(model, *args):
            if self.stop_after and self.blocks == self.stop_after:
                raise Stopped("told to stop")
            self.blocks += 1
            return read(model, *args)

        def watched_generate(model, memory, *args):
            self.memories.append(jax.tree.map(np.asarray, memory))
            return generate(model, memory, *args)

        monkeypatch.setattr(api.Model, "read", watched_read)
        monkeypatch.setattr(api.Model, "generate_from", watched_generate)
        monkeypatch.setattr(answering, "BLOCK", 4)


def log_of(folder: Path) -> list[str]:
    """The lines of the answer log, without the time that an answer took."""
    lines = (folder / "answers" / "qa1_20s.jsonl").read_text().splitlines()
    return [line.split('"seconds"')[0] for line in lines]


def timeless(results: list[EvalResult]) -> list[EvalResult]:
    return [dataclasses.replace(result, seconds=0) for result in results]


def unfinished(folder: Path) -> list[Path]:
    return list((folder / "answers").glob("*.npz"))


def same_memories(a: list, b: list) -> bool:
    return all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for one, other in zip(a, b, strict=True)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_stopped_in_the_second_batch(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        unbroken = Watched(patch)
        expected = evaluate(model, out=tmp_path / "whole", **WHAT)
    assert not unfinished(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stopped = Watched(patch, stop_after=unbroken.blocks - 2)
        evaluate(model, out=tmp_path / "broken", **WHAT)
    assert len(unfinished(tmp_path / "broken")) == 1 and len(stopped.memories) == 2
    with monkeypatch.context() as patch:
        rest = Watched(patch)
        found = evaluate(model, out=tmp_path / "broken", **WHAT)
    assert rest.blocks == 2 and timeless(found) == timeless(expected)
    assert same_memories(stopped.memories + rest.memories, unbroken.memories)
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")
    assert not unfinished(tmp_path / "broken")


NO_ARCHIVE = pytest.param("no archive", marks=pytest.mark.slow)


@pytest.mark.parametrize("harm", ("cut short", NO_ARCHIVE, "of another evaluation"))
def test_what_is_no_use_is_read_anew(model, tmp_path, monkeypatch, harm):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        Watched(patch, stop_after=3)
        evaluate(model, out=tmp_path, **WHAT)
    (kept,) = unfinished(tmp_path)
    changed = WHAT
    if harm == "cut short":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif harm == "no archive":
        kept.write_bytes(b"abc")
    else:
        changed = WHAT | {"seed": 7}
    whole = evaluate(model, out=tmp_path / "whole", **changed)
    with monkeypatch.context() as patch:
        again = Watched(patch)
        found = evaluate(model, out=tmp_path, **changed)
    assert timeless(found) == timeless(whole)
    assert again.blocks == 10 and not unfinished(tmp_path)


def test_keeping_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """After a write that takes long the next one is further off than a minute."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept = kept_reading.KeptReading(tmp_path / "a.npz", "key", lambda tokens: None)
    memory = kept_reading.Memory({"matrix": np.ones((2, 3), np.float32)}, np.ones(2, bool))

    def slow_write(*args, **named):
        now[0] += 10

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", slow_write)
        written = []
        for second in range(0, 2000, 20):
            now[0], before = max(now[0], second), now[0]
            kept.keep_if_due(second, memory)
            if now[0] >= max(before, second) + 10:
                written.append(second)
    assert written[0] == 60 and np.diff(written).min() >= 10 / kept_reading.SHARE


STOPS_ITSELF = """
import os, pathlib, signal, sys
from rmt_jax import api
from rmt_jax.evaluation import answering, evaluate, kept_reading

answering.BLOCK, kept_reading.SECONDS, kept_reading.SHARE = 4, 0, 1e9
read, blocks = api.Model.read, []

def watched(*args):
    blocks.append(1)
    if len(blocks) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*args)

api.Model.read = watched
out = pathlib.Path(sys.argv[1])
evaluate(api.load("multitask"), tasks=["qa1"], lengths=["20s"], samples=3, batch=2, out=out)
"""


def test_killed_at_once(model, tmp_path, monkeypatch):
    """SIGKILL leaves no time to keep anything: what was kept before counts."""
    done = subprocess.run(
        [sys.executable, "-c", STOPS_ITSELF, str(tmp_path / "broken")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(unfinished(tmp_path / "broken")) == 1
    whole = evaluate(model, out=tmp_path / "whole", **WHAT)
    with monkeypatch.context() as patch:
        rest = Watched(patch)
        found = evaluate(model, out=tmp_path / "broken", **WHAT)
    assert timeless(found) == timeless(whole)
    assert rest.blocks == 3  # of the five of the second batch
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


@pytest.mark.slow
def test_the_command_is_told_to_stop_and_killed(tmp_path):
    """SIGTERM, SIGKILL, SIGTERM in the middle of one text: the files of an unbroken evaluation."""
    command = [sys.executable, "-m", "rmt_jax.evaluate", "--workdir", "multitask"]
    command += ["--tasks", "qa1", "--lengths", "1M", "--samples", "1", "--background", "builtin"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--out", str(tmp_path / name)], env=env, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        with start("broken") as process:
            while not (tmp_path / "broken" / "answers").is_dir():
                assert process.poll() is None
                time.sleep(0.1)
            time.sleep(12)
            process.send_signal(number)
            stderr = process.communicate(timeout=60)[1]
        assert process.returncode == (REQUEUE if number == signal.SIGTERM else -number), stderr
        assert "Traceback" not in stderr
    assert len(unfinished(tmp_path / "broken")) == 1
    for name in ("broken", "whole"):
        with start(name) as process:
            assert process.wait(600) == 0
    found = [
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.csv")}
        for name in ("broken", "whole")
    ]
    assert found[0] == found[1] and found[0] and not unfinished(tmp_path / "broken")


def test_a_short_last_segment_costs_a_quarter_and_answers_the_same(tmp_path, monkeypatch):
    """Of a segment of 256 places; a shorter one is read whole, as in training."""
    config = tiny_run.config("rmt")
    sizes = dataclasses.replace(config.model, segment_tokens=256)
    reader = api.load(tiny_run.save(tmp_path / "run", config.replace(model=sizes)))
    tokens = np.zeros((2, 256), np.int32)
    tokens[:, :60] = np.random.default_rng(0).integers(0, reader.vocab, (2, 60))
    prompt = Prompt(tokens[:, :24], tokens[:, :24] >= 0, np.zeros(2, np.int32))
    memory, widths = reader.initial_memory(2), []
    generate = api.Model.generate_from

    def watched(model, memory, tokens, *more):
        widths.append(tokens.shape[1])
        return generate(model, memory, tokens, *more)

    monkeypatch.setattr(api.Model, "generate_from", watched)
    for count in (60, 64, 65, 129):
        mask = np.arange(256) < np.array([count, 20])[:, None]
        found = answering.generate_answers(reader, memory, tokens, mask, prompt, [6, 6])
        monkeypatch.setattr(answering, "LONG_SEGMENT", 1000)
        assert answering.generate_answers(reader, memory, tokens, mask, prompt, [6, 6]) == found
        monkeypatch.setattr(answering, "LONG_SEGMENT", 256)
    assert widths == [64, 256, 64, 256, 128, 256, 256, 256]
