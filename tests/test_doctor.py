"""`python -m rmt_jax.doctor` says what is there and ends with a code for scripts."""

import urllib.request

import pytest

from rmt_jax import doctor
from rmt_jax.config import Config, ConfigError, Model, Prompt
from rmt_jax.models import costs
from rmt_jax.runtime import hardware, startup


def test_a_machine_that_can_train(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "train_step", lambda report, seconds: None)  # minutes under load
    assert doctor.main(["--seconds", "0.1", "--offline"]) == 0
    told = capsys.readouterr().out
    for text in ("jax 0.", "1 cpu device", "float32", "GiB free", "TFLOP/s", "ready to train"):
        assert text in told
    assert "not asked (offline)" in told and "wandb" in told


def test_problems_end_with_code_one(capsys, monkeypatch):
    def fail():
        raise ConfigError("This machine has 8 NVIDIA GPU(s), but JAX runs on the CPU.")

    monkeypatch.setattr(startup, "prepare", fail)
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "optax" else "1")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.main(["--offline"]) == 1
    told = capsys.readouterr().out
    assert "problem    optax missing: pip install -e ." in told
    assert "problem    This machine has 8 NVIDIA" in told
    assert "wandb: missing: pip install wandb" in told and "2 problem(s)" in told


def test_a_silent_hub_is_no_problem(capsys, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    report = doctor.Report()
    doctor.hub(report, offline=False)
    assert not report.problems and "cannot be reached (no route)" in capsys.readouterr().out


@pytest.mark.slow  # compiles a train step at full optimisation
def test_the_train_step_has_a_speed(capsys):
    report = doctor.Report()
    doctor.train_step(report, 0.1)
    assert not report.problems and "tokens/s" in capsys.readouterr().out


def test_peaks_and_flops():
    class Gpu:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert hardware.peak(Gpu()) == 989e12
    Gpu.device_kind = "cpu"
    assert hardware.peak(Gpu()) is None
    # GPT-2 small without memory and prompt: 6 · 85M weights, and attention.
    config = Config(model=Model(cell="none", memory_tokens=0), prompt=Prompt(source="none"))
    weights, attention = 12 * 12 * 768**2, 12 * 768 * 512
    assert costs.train_flops(config) == pytest.approx(6 * (weights + attention))
    # As PaLM's authors count: 6 N + 12 L H Q T, whatever is hidden or left out.
    usual = 6 * weights + 12 * 12 * 768 * 512
    assert costs.train_flops(config, whole=True) == pytest.approx(usual)
    unrolled = Config(
        model=Model(cell="none", memory_tokens=0, scan_layers=False), prompt=Prompt(source="none")
    )
    assert costs.train_flops(unrolled, whole=True) == pytest.approx(usual)
    assert costs.train_flops(unrolled) < 0.95 * costs.train_flops(config)
