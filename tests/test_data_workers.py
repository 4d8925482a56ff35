"""Workers that make batches: dead ones are started again, and no batch is lost."""

import errno
import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from faulty_run import config

from rmt_jax.config import ConfigError
from rmt_jax.training import divergence

pytestmark = pytest.mark.portable


def test_dead_data_workers_are_started_again():
    said, lives = [], iter([2, 0, 3])

    def stream(step):
        for i in range(next(lives)):
            yield step + i
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")

    feed = divergence.batches(stream, 10, said.append, tries=2)
    assert [next(feed) for _ in range(5)] == [10, 11, 12, 13, 14]
    assert said[0].startswith("a data worker died before step 13") and len(said) == 2
    with pytest.raises(ConfigError, match="died 3 times, the last before step 16"):
        next(feed)


def test_shared_memory_without_room_is_named():
    def stream(step):
        yield step
        raise OSError(errno.ENOSPC, "No space left on device")

    feed = divergence.batches(stream, 10, print)
    assert next(feed) == 10
    with pytest.raises(ConfigError, match="batch of step 12 .*in /dev/shm.*lower config.data.work"):
        next(feed)


def test_a_worker_process_killed_costs_no_batch(monkeypatch):
    from rmt_jax.data import tokenizer
    from rmt_jax.data.loader import Loader

    settings = config().replace(data=replace(config().data, workers=1))
    loader = Loader(settings, tokenizer.load("builtin"), "train")
    # More batches than are prefetched: the death is noticed.
    monkeypatch.setattr(loader, "_ends", np.array([200]))
    said: list[str] = []
    feed = divergence.batches(loader.stream, 0, said.append)
    next(feed)
    children = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True
    )
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    step, batch = 0, None
    while not said and step < 100:
        step, batch = step + 1, next(feed)
    assert said and batch is not None
    np.testing.assert_array_equal(batch.tokens, loader.batch_at(step).tokens)
