"""A run's folder: one run at a time, and one of its own for each."""

import datetime
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from rmt_jax.config import ConfigError
from rmt_jax.runtime import workdir
from rmt_jax.runtime.workdir import Workdir

pytestmark = pytest.mark.portable


def test_two_runs_on_one_workdir(tmp_path):
    with Workdir(tmp_path):
        told = rf"Another run \(process {os.getpid()}\) is writing to"
        with pytest.raises(ConfigError, match=told):
            Workdir(tmp_path)
        with Workdir(tmp_path, owner=False):  # other processes of the same run
            pass
    with Workdir(tmp_path):
        pass


def test_runs_that_start_in_the_same_second_have_a_folder_each(tmp_path, monkeypatch):
    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datetime, "datetime", Still)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: workdir.new_folder(), range(4)))
    name = "runs/2026-01-02-030405"
    assert sorted(map(str, made)) == [name, *(f"{name}-{n}" for n in (2, 3, 4))]
