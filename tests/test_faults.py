"""What happens to a run when something breaks: signals, damaged files, full disks, diverging."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from faulty_run import STEPS, at_call, config, kill, quick
from safetensors.numpy import load_file

from rmt_jax import cli
from rmt_jax.config import Config, ConfigError
from rmt_jax.runtime.preemption import REQUEUE, Signals, Stopped
from rmt_jax.training import checkpoint, divergence, loop, progress
from rmt_jax.training import run as training
from rmt_jax.training.checkpoint import CheckpointError, Checkpoints
from rmt_jax.training.step import TrainState

pytestmark = pytest.mark.portable


@pytest.fixture(autouse=True)
def leftovers():
    """What a failed restore of Orbax leaves behind is collected here, not within another test. What
    a run says goes to standard error, as under a command."""
    cli.log_to_stderr()
    yield
    gc.collect()


FAULTY_RUN = Path(__file__).with_name("faulty_run.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs shared by the runs of this file and their subprocesses."""
    folder = str(tmp_path_factory.mktemp("xla"))
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir",
             "jax_persistent_cache_min_compile_time_secs")  # fmt: skip
    before = [jax.config.values[name] for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_CACHE", folder)
        patch.setenv("JAX_PLATFORMS", "cpu")
        quick(patch.setattr)
        yield folder
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert training.run(config(), path) == 0
    return path


def same_bits(a: Path, b: Path) -> bool:
    a_weights, b_weights = (load_file(p / "weights.safetensors") for p in (a, b))
    return a_weights.keys() == b_weights.keys() and all(
        np.array_equal(a_weights[name], b_weights[name]) for name in a_weights
    )


def saved(path: Path) -> list[int]:
    return sorted(int(f.name) for f in (path / "checkpoints").iterdir() if f.name.isdecimal())


def in_a_process(path: Path, fault: str) -> int:
    done = subprocess.run(
        [sys.executable, str(FAULTY_RUN), str(path), fault],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FAULTY_RUN.parents[1])},
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode


def test_sigterm_then_sigkill_in_a_save_then_the_same_bits(whole, tmp_path):
    path = tmp_path / "run"
    assert in_a_process(path, "sigterm") == REQUEUE
    assert saved(path)[-1] == 3
    assert in_a_process(path, "kill_in_save") == -signal.SIGKILL
    assert saved(path)[-1] in (4, 5)  # 5 is there whole or not there
    stale = path / "checkpoints" / "5.orbax-checkpoint-tmp-9"
    stale.mkdir()
    (stale / "d").write_bytes(b"half")
    assert training.run(config(), path) == 0
    assert not stale.exists() and saved(path)[-1] == STEPS
    assert same_bits(path, whole)


@pytest.fixture
def own_signals():
    """As a terminal starts a process: one in the background of a shell begins without SIGINT."""
    fresh = {signal.SIGINT: signal.default_int_handler}
    fresh |= dict.fromkeys((signal.SIGHUP, signal.SIGUSR1), signal.SIG_DFL)
    kept = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGUSR1, REQUEUE), (signal.SIGHUP, REQUEUE), (signal.SIGINT, 130)],
)
def test_other_signals_save_too(whole, tmp_path, monkeypatch, capfd, number, code):
    """SLURM's --signal=USR1, a terminal that is closed, Ctrl-C."""
    before = signal.getsignal(number)
    monkeypatch.setattr(loop.Loop, "validates", at_call(5, loop.Loop.validates, kill(number)))
    assert training.run(config(), tmp_path / "run") == code
    assert saved(tmp_path / "run")[-1] == 3 and signal.getsignal(number) is before
    said = capfd.readouterr().err
    assert "told to stop: saved at step 3; the same command continues from there" in said
    assert ("Ctrl-C again stops at once" in said) == (number == signal.SIGINT)


@pytest.mark.usefixtures("own_signals")
def test_a_second_ctrl_c_stops_at_once_and_nohup_is_obeyed():
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Signals() as signals:
            kill(signal.SIGHUP)()
            assert not signals.noted
            kill(signal.SIGINT)()
            assert signals.noted and signals.code == 130
            with pytest.raises(KeyboardInterrupt):
                kill(signal.SIGINT)()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)


@pytest.mark.usefixtures("own_signals")
def test_a_library_cannot_swallow_the_stop():
    """JAX goes on after whatever error reading its compilation cache raises."""
    with Signals() as signals, pytest.raises(Stopped):
        signals.now_at_once()
        with contextlib.suppress(Exception):
            kill(signal.SIGTERM)()


def test_sigterm_in_a_validation_saves_first_and_validates_later(whole, tmp_path, monkeypatch):
    path = tmp_path / "run"

    def validated() -> list[int]:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines if "validation" in line]

    settings = config().replace(evaluation=replace(config().evaluation, every=2))
    validate = at_call(1, loop.Loop.validate, kill(signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "validate", lambda *args: validate(*args))
        assert training.run(settings, path) == REQUEUE
    assert saved(path) == [1, 2] and validated() == []
    assert training.run(settings, path) == 0
    assert validated() == [2, 4, 6]


def test_sigterm_in_the_final_evaluation_asks_to_be_started_again(whole, monkeypatch, capfd):
    def finish(path):
        kill(signal.SIGTERM)()
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(training, "finish", finish)
        assert training.run(config(), whole) == REQUEUE
    assert "told to stop; the same command continues" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_nan_goes_back_and_lowers_the_rate(whole, tmp_path, monkeypatch, capfd):
    close = loop.Window.close
    spoil = []

    def closed(self):
        means = close(self)
        spoil.append(1)
        return means | {"loss": float("nan")} if len(spoil) == 5 else means

    monkeypatch.setattr(loop.Window, "close", closed)
    path = tmp_path / "run"
    assert training.run(config(), path) == 0
    told = capfd.readouterr().err
    assert "step 5: the loss is nan. Going back to the last checkpoint up to step 4" in told
    assert "with 0.5 times the learning rate (try 1 of 3)" in told
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rates = {}
    for line in lines:
        rates.setdefault(line["step"], []).append(line.get("learning_rate"))
    assert rates[5][1] == pytest.approx(rates[5][0] / 2, rel=1e-5)
    assert divergence.Rescues(path).scale == 0.5  # a continued run keeps it


def test_a_collapse_goes_back_although_much_was_to_be_saved(whole, tmp_path, monkeypatch, capfd):
    close, losses = loop.Window.close, [0.1, 0.1, 0.1, 3.0, 3.0, 3.0]
    monkeypatch.setattr(divergence, "EARLY", 0)
    monkeypatch.setattr(divergence, "LINES", 3)
    monkeypatch.setattr(
        loop.Window, "close",
        lambda self: close(self) | {"loss": losses.pop(0) if losses else 0.1},
    )  # fmt: skip
    settings = config().replace(checkpoint=replace(config().checkpoint, keep=2))
    assert training.run(settings, tmp_path / "run") == 0  # saves at every step
    told = capfd.readouterr().err
    assert "collapsed" in told and "Going back to the last checkpoint up to step 3" in told
    assert "continuing from step 3" in told


def test_weights_spoiled_by_the_step_that_is_saved(whole, tmp_path, monkeypatch, capfd):
    call, spoiled = loop.Programs.__call__, []

    def spoils(self, state, batch):
        made = call(self, state, batch)
        if isinstance(made[0], TrainState) and int(made[0].step) == 4 and not spoiled:
            spoiled.append(4)
            params = jax.tree.map(lambda x: x * np.float32("nan"), made[0].params)
            return made[0]._replace(params=params), made[1]
        return made

    monkeypatch.setattr(loop.Programs, "__call__", spoils)
    path = tmp_path / "run"
    assert training.run(config(), path) == 0
    told = capfd.readouterr().err
    assert "step 4: weights are not finite after its update. Going back" in told
    assert "continuing from step 3" in told
    assert all(np.isfinite(x).all() for x in load_file(path / "weights.safetensors").values())


def test_rescues_are_bounded(tmp_path):
    rescues = divergence.Rescues(tmp_path)
    for _ in range(divergence.TRIES):
        rescues.add(divergence.Diverged(9, 8, "the loss is nan"))
    with pytest.raises(ConfigError, match="diverged at step 9: the loss is nan, for the 4th time"):
        rescues.add(divergence.Diverged(9, 8, "the loss is nan"))
    (tmp_path / "rescues.json").write_text("[")
    with pytest.raises(ConfigError, match="is not JSON"):
        divergence.Rescues(tmp_path)


def test_a_collapse_is_noticed_and_noise_is_not():
    watch = divergence.Watch(0)
    for step, loss in enumerate([4.0, 0.1, 2, 2, 2, 2, 2, 2, 2, 2]):
        watch.see(step, 0, loss)  # too early to judge
    watch = divergence.Watch(0)
    for step in range(40):  # never five bad lines on end
        watch.see(step, 0, 0.4 if step % 5 == 0 else 1.9)
    watch.see(40, 1, 5.0)  # a new stage may start high
    for step in range(41, 100):
        watch.see(step, 1, 0.3)
    with pytest.raises(
        divergence.Diverged, match=r"stage 2 collapsed \(loss 1.80, was 0.30\)"
    ) as told:
        for step in range(100, 110):
            watch.see(step, 1, 1.8)
    assert (told.value.step, told.value.good) == (104, 99)


def largest(folder: Path) -> Path:
    files = (f for f in folder.rglob("*") if f.is_file())
    return max(files, key=lambda f: f.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "bytes and was written with"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "changed since it was writt"),
        (None, "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(
    whole, cache, damage, sentence, capfd
):
    file = largest(whole / "checkpoints" / str(STEPS))
    data = file.read_bytes()
    try:
        file.write_bytes(damage(data)) if damage else file.unlink()
        with pytest.raises(CheckpointError, match=sentence) as told:
            training.run(config(), whole)
    finally:
        file.write_bytes(data)
    assert f"delete {whole / 'checkpoints' / str(STEPS)}" in str(told.value)
    assert "goes on from step 5" in str(told.value)


def test_a_damaged_checkpoint_without_a_seal_is_a_sentence_too(whole):
    folder = whole / "checkpoints" / str(STEPS)
    kept = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    try:
        (folder / checkpoint.SEAL).unlink()
        for file in kept:
            if file.name != checkpoint.SEAL and file.exists():
                file.write_bytes(b"")
        with pytest.raises(CheckpointError, match="cannot be restored"):
            training.run(config(), whole)
    finally:
        for file, data in kept.items():
            file.write_bytes(data)


def test_a_full_disk_names_the_checkpoint_that_is_left(tmp_path, capfd, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        noise = np.random.default_rng(0).standard_normal(90_000).astype(np.float32)

        def state(step: int) -> TrainState:
            return TrainState(jax.numpy.int32(step), {"w": jax.numpy.asarray(noise + step)}, {})

        checkpoints = Checkpoints(disk / "checkpoints", config().checkpoint)
        with pytest.raises(CheckpointError, match="could not be written") as told:
            for step in range(1, 9):
                checkpoints.save(state(step))
            checkpoints.wait()
        assert "The last whole one is of step" in str(told.value)
        assert "Traceback" not in capfd.readouterr().err + caplog.text  # Orbax's, one a thread
        left = saved(disk)[-1]
        again = Checkpoints(disk / "checkpoints", config().checkpoint)
        restored = again.restore(state(0), left)
        assert np.array_equal(restored.params["w"], noise + left)
        again.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_continued_run_needs_nothing_of_where_it_began(whole, tmp_path):
    source, path = tmp_path / "source", tmp_path / "run"
    shutil.copytree(whole, source)
    settings = config().replace(init=str(source))
    assert training.run(settings, path) == 0
    before = load_file(path / "weights.safetensors")
    shutil.rmtree(source)
    assert training.run(settings, path) == 0
    after = load_file(path / "weights.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_start_that_failed_binds_nobody(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(ConfigError, match="gone"):
        training.run(config().replace(init=str(tmp_path / "gone")), path)
    assert training.run(config(), path) == 0


def test_a_kill_while_a_checkpoint_gets_its_score(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder, replace(config().checkpoint, keep=1))
    state = TrainState(np.int32(8), {"a": np.arange(3.0)}, {})
    state = jax.tree.map(jax.numpy.asarray, state)
    first.save(state)
    first.wait()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(first._manager, "save_async", killed)
    with pytest.raises(KeyboardInterrupt):
        first.save(state, {"score": 1.0})
    assert not (folder / "8").exists()
    again = Checkpoints(folder, replace(config().checkpoint, keep=1))
    assert again.steps() == [8]
    assert np.array_equal(again.restore(state).params["a"], np.arange(3.0))
    again.save(state, {"score": 1.0})
    again.close()
    assert again.validated(8) and not folder.with_name("checkpoints.aside").exists()


def test_a_line_cut_off_costs_no_other(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st')
    for step in (2, 3):
        one = progress.Progress(file, 1, 0)
        one.log({"step": step})
        one.close()
    lines = file.read_text().splitlines()
    assert lines[1] == '{"st' and [json.loads(x)["step"] for x in lines[2:]] == [2, 3]


def test_a_continued_run_must_have_the_same_config(whole):
    other: Config = config().replace(seed=7)
    with pytest.raises(ConfigError, match="another config .seed was 0 and is 7.: choose another"):
        training.run(other, whole)
