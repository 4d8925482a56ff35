"""The log as TensorBoard files and W&B runs; MFU, traces and the memory a step needs."""

import sys
import types
from types import SimpleNamespace

import pytest
from faulty_run import config, quick

from rmt_jax.config import Config, ConfigError, Model
from rmt_jax.models import costs
from rmt_jax.runtime import hardware
from rmt_jax.training import loop, trackers
from rmt_jax.training import run as training


def test_records_become_names_and_numbers():
    record = {"loss": 0.5, "accuracy": {"qa1": 1}, "validation": {"qa1": {"1s": 0.2}}, "note": "x"}
    assert trackers.flat(record) == {"loss": 0.5, "accuracy/qa1": 1, "validation/qa1/1s": 0.2}


def test_a_run_is_looked_at(tmp_path, monkeypatch):
    """A real run with a trace, a known peak, and both trackers (stand-ins for the packages)."""
    seen: dict[str, list] = {"scalars": [], "wandb": [], "init": []}

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_text(self, *_): ...
        def close(self): ...
        def add_scalar(self, name, value, step):
            seen["scalars"].append((name, step))

    def init(**options):
        seen["init"].append(options["id"])
        log = lambda values, step: seen["wandb"].append((step, values))  # noqa: E731
        return SimpleNamespace(id="r1", log=log, finish=lambda: None)

    tensorboard, wandb = types.ModuleType("tensorboardX"), types.ModuleType("wandb")
    vars(tensorboard)["SummaryWriter"], vars(wandb)["init"] = Writer, init
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(hardware, "peak", lambda device: 1e6)
    quick(monkeypatch.setattr)
    # What accelerators do at the start: the largest step is compiled and its memory looked at.
    run, fitted = loop.Loop.run, []

    def run_fitted(self, state, loader, validation):
        self.compile(state, loader, validation)
        return run(self, state, loader, validation)

    monkeypatch.setattr(loop.Loop, "run", run_fitted)
    monkeypatch.setattr(
        hardware, "fits", lambda *args: fitted.append(hardware.needed_memory(args[0]))
    )
    looks = trackers.Looks("tensorboard,wandb", "2-99")  # to the end
    assert training.run(config(), tmp_path, looks) == 0
    assert fitted[0] > 500_000
    assert ("accuracy/qa1", 6) in seen["scalars"] and ("validation/qa1/1s", 6) in seen["scalars"]
    step, values = seen["wandb"][-2]
    rate = values["tokens_per_second"] * costs.train_flops(config())
    assert seen["wandb"][0][0] == 1 and step == 6
    assert values["mfu"] == pytest.approx(rate / 1e6, rel=0.01)
    assert any((tmp_path / "profile").rglob("*.xplane.pb"))
    assert training.run(config(), tmp_path, looks) == 0
    assert seen["init"] == [None, "r1"]  # continued as the same run


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("tensorbord", "takes tensorboard and wandb, but got 'tensorbord'"),
        ("wandb", "needs the package wandb: pip install wandb"),
        ("tensorboard", "needs the package tensorboardX: pip install tensorboardX"),
    ],
)
def test_trackers_that_are_not_there(names, sentence, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=sentence):
        trackers.open_trackers(names, tmp_path, Config())


@pytest.mark.parametrize("text", ["20", "25-20", "0-3", "a-b"])
def test_steps_to_profile_are_two_numbers(text):
    with pytest.raises(ConfigError, match="such as 20-25, but got"):
        trackers.Looks(profile_steps=text).profiled()


def test_a_step_that_does_not_fit_is_refused_with_settings_that_would():
    def compiled(gib):
        sizes = dict.fromkeys(("argument_size_in_bytes", "output_size_in_bytes"), 2**30)
        analysis = SimpleNamespace(
            temp_size_in_bytes=gib * 2**30, alias_size_in_bytes=2**30, **sizes
        )
        return SimpleNamespace(memory_analysis=lambda: analysis)

    stats = {"bytes_limit": 16 * 2**30}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    settings = Config(model=Model(remat=False))
    hardware.fits(compiled(15), device, settings)
    with pytest.raises(ConfigError) as told:
        hardware.fits(compiled(31), device, settings)
    for text in ("about 32.0 GiB", "16.0 GiB: set config.model.remat=true", "accumulate to 3 or"):
        assert text in str(told.value)
