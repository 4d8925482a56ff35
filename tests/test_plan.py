"""`doctor --plan`: the loader's numbers, honest sentences, and no device needed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rmt_jax import cli, doctor
from rmt_jax.config import ConfigError
from rmt_jax.data import tokenizer
from rmt_jax.data.loader import Loader
from rmt_jax.models import costs
from rmt_jax.models.io import shapes
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


def test_places_that_fill_a_tpus_tiles(capsys):
    """The paper's 544 places without a prompt, and presets whose segments fill tiles."""
    words = (f"{MULTITASK}:gpt2", "--devices", "8", "--config.prompt.source=none")
    sentence = (
        "544 places of a segment are padded to 640 on a TPU: model.segment_tokens=480 fills 512"
    )
    assert sentence in shown(capsys, *words, "--device", "v5e")
    assert "padded" not in shown(capsys, *words, "--device", "h100")
    for name in ("gpt2-tpu", "pretrained-tpu"):
        assert plan.tiles(cli.load_config(f"{MULTITASK}:{name}")) == ""
    five = plan.tiles(cli.load_config(f"{MULTITASK}:five"))
    assert five.endswith(
        "76 places of a segment are padded to 128 on a TPU: model.segment_tokens=116 fills 128"
    )


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
        (["--device", "b300"], "no figures for 'b300': v5e, v6e, v5p, tpu7x, a100, h100, h200"),
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
    shape = plan.shape_of(config, stage, loader.segments_at(0))
    assert shape[:4] == (*batch.tokens.shape[:2], *batch.answer_start.shape[1:])
    assert shape.tokens >= batch.answer.shape[-1]


def test_time_is_the_longest_of_three():
    chip = hardware.CHIPS["h100"]
    held = step_costs.Held(weights=1)
    products = plan.Row("", 1, 1.0, chip.flops, 1.0, held, 0.0, held)
    assert products.seconds(chip, 2, 0.25) == pytest.approx(2.0)  # a quarter of two chips' peak
    moved = products._replace(moved=14 * chip.bandwidth)
    assert moved.seconds(chip, 2, 0.25) == pytest.approx(10.0)  # 70 % of the bandwidth
    assert products._replace(least=5.0).seconds(chip, 2, 0.25) == 5.0


# What config.json of meta-llama/Llama-3.2-1B and Llama-3.1-8B say of their sizes.
LLAMA = {
    "model_type": "llama", "vocab_size": 128_256, "num_attention_heads": 32, "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip
SIZES = {
    "1B": {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64,
        "tie_word_embeddings": True},
    "8B": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336,
        "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip
COUNTS = {"1B": 1_235_814_400, "8B": 8_030_261_248}  # as their model cards have it


@pytest.mark.parametrize(
    ("size", "preset", "chip", "devices", "mesh", "accumulate"),
    [
        ("1B", "pretrained", "v5e", 16, (16, 1), 1),
        ("1B", "pretrained", "v6e", 64, (64, 1), 1),
        ("1B", "pretrained", "h100", 8, (8, 1), 8),
        ("8B", "pretrained", "v5e", 16, (4, 4), 16),
        ("8B", "pretrained-lora", "v5e", 16, (4, 4), 16),
        ("8B", "pretrained", "v6e", 64, (64, 1), 1),
        ("8B", "pretrained", "h100", 8, (8, 1), 8),
    ],
)
def test_the_table_of_llamas(tmp_path, size, preset, chip, devices, mesh, accumulate):
    """docs/howto/cluster.md has the plan's figures of a model that is not here."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | SIZES[size]))
    words = {"init": str(tmp_path), "mesh.fsdp": mesh[0], "mesh.tensor": mesh[1]}
    words |= {f"stages.{n}.batch": 64 for n in range(3)} | {"optimizer.accumulate": accumulate}
    config = cli.apply_overrides(cli.load_config(f"{MULTITASK}:{preset}"), words)
    config = shapes.settle(config)
    vocab = shapes.of_source(str(tmp_path)).vocab
    own = costs.weight_shapes(config, vocab).items()
    assert COUNTS[size] == sum(np.prod(s) for n, s in own if n.startswith("backbone/"))
    rows, kind = plan.stages(config, vocab, devices), hardware.CHIPS[chip]
    hours = sum(row.seconds(kind, devices, plan.UTILISATION) for row in rows) / 3600
    held = max(row.on(kind).total for row in rows)
    weights, moments = rows[0].on(kind).weights, rows[0].on(kind).moments
    fits = "yes" if held <= kind.room else "no"
    cells = (
        size, f"`{preset}`", f"{devices} {chip}", f"fsdp={mesh[0]}, tensor={mesh[1]}", accumulate,
        f"{weights / 1e9:.2f}", f"{moments / 1e9:.2f}",
        f"{held / 1e9:.1f} of {kind.room / 1e9:.1f}", fits, f"{hours:.2f}",
    )  # fmt: skip
    line = " | ".join(map(str, cells))
    page = Path(__file__).parents[1] / "docs" / "howto" / "cluster.md"
    assert f"| {line} |" in page.read_text(encoding="utf-8"), line
