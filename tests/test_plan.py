"""`doctor --plan`: the loader's numbers, honest sentences, and no device needed."""

import dataclasses
from pathlib import Path

import pytest

from rmt_jax import cli, doctor
from rmt_jax.config import ConfigError
from rmt_jax.data import tokenizer
from rmt_jax.data.loader import Loader
from rmt_jax.runtime import hardware
from rmt_jax.training import plan, step_costs

MULTITASK = str(Path(__file__).parents[1] / "configs" / "multitask.py")


def shown(capsys, *words: str) -> str:
    assert doctor.main(["--plan", *words]) == 0
    return capsys.readouterr().out


def test_the_papers_model_on_eight(capsys):
    told = shown(capsys, f"{MULTITASK}:gpt2", "--devices", "8")
    assert "124,452,096 weights" in told  # GPT-2's 124,439,808 and 16 memory tokens of 768
    for text in ("stage 7: 1-32 segments", "all stages", "reading 10M", "v5e, h", "h200, s/text"):
        assert text in told
    assert "data: the loader must make" in told
    assert "30 % of the dense bfloat16 peak" in told and "does not fit" not in told


def test_one_device_and_overrides(capsys):
    words = (f"{MULTITASK}:gpt2", "--device", "a100", "--utilisation", "0.5")
    # Stages may be left out.
    words += tuple(f"--config.stages.{i}.steps={5 * (i == 6)}" for i in range(7))
    told = shown(capsys, *words, "--config.model.layers=2", "--config.model.remat=false")
    assert "2 layers of 768" in told and "a100, h" in told and "h100" not in told
    assert "products at 50 % of the peak, as told" in told
    assert "does not fit on a100: stage 7" in told and "or set model.remat=true" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "b300"], "no figures for 'b300': v5e, v6e, a100, h100, h200"),
        (["--devices", "0"], "--devices must be 1 or more"),
        (["--devices", "3"], "does not divide evenly over mesh data=3"),
        (["--utilisation", "40"], "between 0 and 1, but got 40"),
        (["--config.model.layer=1"], "Did you mean model.layers"),
    ],
)
def test_sentences(words, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        doctor.main(["--plan", f"{MULTITASK}:gpt2", *words])


def test_unknown_words_are_refused_without_a_plan():
    with pytest.raises(cli.Usage, match="--config.model.layers=1"):
        doctor.main(["--config.model.layers=1"])


def test_the_loaders_batches():
    """Sizes of batches and numbers of tokens are those that the loader will make."""
    config = cli.load_config(f"{MULTITASK}:smoke")
    stages = zip(config.stages, (3, 6), (2000, 3000), strict=True)
    config = config.replace(
        stages=tuple(dataclasses.replace(stage, segments=s, steps=n) for stage, s, n in stages)
    )
    words = tokenizer.load("builtin")
    loader = Loader(config, words)
    rows = plan.stages(config, words.vocab_size, 1)
    ends = (0, 2000, 5000)
    for row, start, stop in zip(rows, ends, ends[1:], strict=False):
        drawn = sum(loader.tokens_at(step) for step in range(start, stop))
        assert row.tokens == pytest.approx(drawn, rel=0.03) and row.count == stop - start
    batch, stage = loader.batch_at(0), loader.stages[loader.stage_at(0)]
    shape = plan._shape(config, stage, loader.segments_at(0))
    assert shape[:4] == (*batch.tokens.shape[:2], *batch.answer_start.shape[1:])
    assert shape.tokens >= batch.answer.shape[-1]


def test_time_is_the_longest_of_three():
    chip = hardware.CHIPS["h100"]
    held = step_costs.Held(weights=1)
    products = plan.Row("", 1, 1.0, chip.flops, 1.0, held, 0.0)
    assert products.seconds(chip, 2, 0.25) == pytest.approx(2.0)  # a quarter of two chips' peak
    moved = products._replace(moved=14 * chip.bandwidth)
    assert moved.seconds(chip, 2, 0.25) == pytest.approx(10.0)  # 70 % of the bandwidth
    assert products._replace(least=5.0).seconds(chip, 2, 0.25) == 5.0
