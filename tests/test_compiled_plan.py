"""`doctor --plan CONFIG --compile TPU`: the compiler's figures, refusals, and the way out."""

import json
import re
from pathlib import Path

import jax
import pytest

from rmt_jax import cli, doctor
from rmt_jax.config import ConfigError, update
from rmt_jax.models.io import shapes
from rmt_jax.runtime import hardware, program_text, topology
from rmt_jax.training import compiled_plan as plan
from rmt_jax.training.compiled_plan import Compiled, Program

MULTITASK = str(Path(__file__).parents[1] / "configs" / "multitask.py")
SLOW = pytest.mark.slow


def preset(name: str, **values):
    return update(cli.load_config(f"{MULTITASK}:{name}"), values)


def tpu(name: str) -> topology.Topology:
    if told := topology.missing():
        pytest.skip(told)
    return topology.describe(name)


@pytest.mark.portable
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["v5e:2x4"], r"pip install 'rmt_jax\[tpu\]'"),
        (["h100:8"], "'h100:8' is no TPU that programs are compiled for"),
        (["v5e:2x4", "--slices", "0"], "one slice or more, but got 0"),
    ],
)
def test_sentences(monkeypatch, words, sentence):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=sentence):
        doctor.main(["--plan", f"{MULTITASK}:smoke", "--compile", *words])


@pytest.mark.portable
def test_the_programs_of_a_curriculum():
    """The paper's seven stages are one kind of batch; stages that differ are not."""
    config = preset("gpt2")
    titles = [program.title(config, 8) for program in plan.of_config(config)]
    assert titles == [
        "training, 64 texts of 32 segments",
        "training, 64 texts of 1 segments",
        "validation, 32 texts of 32 segments",
        "reading, 32 texts, a segment",
        "answering, 32 texts, a token",
        "generation, 32 texts, a drawn token",
    ]
    mixed = preset("smoke", **{"stages.1.batch": 8})
    shapes = [program.shape(mixed)[:2] for program in plan.of_config(mixed)[:3]]
    assert shapes == [(16, 1), (8, 2), (8, 1)]
    with pytest.raises(ConfigError, match="nothing is trained"):
        plan.of_config(preset("smoke", **{"stages.0.steps": 0, "stages.1.steps": 0}))


@pytest.mark.portable
def test_what_is_tried_where_a_program_does_not_fit():
    config = preset("gpt2", **{"model.remat": False})
    tried = list(plan.changes(config, Program("training", 6, 32), 4))
    assert tried[0] == {"model.remat": True}
    assert tried[1] == {"model.remat": True, "optimizer.accumulate": 2}
    assert {"model.remat": True, "mesh.fsdp": 4, "mesh.data": -1} in tried
    assert tried[-1]["stages.6.batch"] == 1
    first, *_, last = plan.changes(config, Program("reading"), 4)
    assert first == {"mesh.fsdp": 2, "mesh.data": -1} and last == {"evaluation.batch": 1}


@pytest.mark.portable
def test_the_compilers_refusals_are_read():
    newer = "temporaries (2.50T) exceeds available HBM (15.75G)"
    older = "Ran out of memory in memory space hbm. Used 18.52G of 15.75G hbm."
    assert plan.refused_bytes(newer) == 2.5 * 2**40
    assert plan.refused_bytes(older) == int(18.52 * 2**30)
    assert plan.refused_bytes("something else") == 0


@pytest.mark.portable
@pytest.mark.parametrize(
    ("counts", "milliseconds"),
    [
        (program_text.Counts(flops=197e9, moved=1e6, received=1e6), 1.0),
        (program_text.Counts(flops=1e6, moved=2 * 819e6, received=1e6), 2.0),
        (program_text.Counts(flops=1e6, moved=1e6, received=3 * 200e6), 3.0),
    ],
)
def test_the_slowest_of_products_memory_and_links_decides(counts, milliseconds):
    made = Compiled(0, 0, 0, counts, 0.0)
    assert 1e3 * made.seconds(hardware.CHIPS["v5e"]) == pytest.approx(milliseconds)


@SLOW
def test_a_plan_is_printed(capsys):
    tpu("v5e:2x2")
    assert doctor.main(["--plan", f"{MULTITASK}:smoke", "--compile", "v5e:2x2"]) == 0
    told = capsys.readouterr().out
    for text in ("data=4 · fsdp=1", "15.75 GiB each", "training, 16 texts of 2 segments", "libtpu"):
        assert text in told
    assert "does not fit" not in told


@pytest.mark.portable
def test_a_program_that_does_not_fit_gets_the_setting_that_helps(monkeypatch, capsys):
    """A compiler that takes training in four microbatches of remat, and all the rest as it is."""
    config = preset("gpt2", **{"model.remat": False, "model.layers": 2})
    asked = []

    def compiler(config, vocab, program, tpu):
        asked.append((program.kind, config.model.remat, config.optimizer.accumulate))
        if program.kind == "training" and not (
            config.model.remat and config.optimizer.accumulate >= 4
        ):
            return plan.Refused(int(20 * 2**30))
        return Compiled(2**30, 2**30, 2**31, program_text.Counts(1e12, moved=1e9), 1.0)

    monkeypatch.setattr(plan, "compile_for", compiler)
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "1")
    one = topology.Topology("v5e:1x1", hardware.CHIPS["v5e"], jax.devices()[:1])
    assert plan.show(config, 50_257, one) == 1
    told = capsys.readouterr().out
    assert "64 texts of 32 segments: does not fit, it needs 20.00 GiB of 15.75 GiB" in told
    way = "it fits with --config.model.remat=true --config.optimizer.accumulate=4:"
    assert told.count(way) == 2 and ("reading", False, 1) in asked


@SLOW
def test_a_refusal_and_its_way_out_are_the_compilers(monkeypatch, capsys):
    """2,048 texts of 1,000 tokens for one chip are too many, until they go through in parts."""
    tpu("v5e:1x1")
    monkeypatch.setattr(plan, "of_config", lambda config: [Program("training", 0, 1)])
    words = [f"--config.stages.{n}.batch={2**11}" for n in (0, 1)]
    words += ["--config.model.segment_tokens=1000"]
    told = ["--plan", f"{MULTITASK}:smoke", "--compile", "v5e:1x1", *words]
    assert doctor.main([*told, "--config.stages.1.segments=1"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"does not fit, it needs \d+\.\d+ GiB of 15\.75 GiB", out)
    assert "it fits with --config.optimizer.accumulate=" in out
    made = re.findall(r"training, 2048 texts of 1 segments +(\d+\.\d+) ", out)
    assert made and all(float(gib) < 15.75 for gib in made)


@SLOW
@pytest.mark.parametrize(
    ("config", "vocab", "program", "name"),
    [
        (preset("gpt2"), 50_257, Program("training", 2, 4), "v5e:2x4"),
        (
            preset("gpt2", **{"optimizer.accumulate": 2}),
            50_257,
            Program("training", 2, 4),
            "v5e:2x4",
        ),
        (
            preset("gpt2-tpu", **{"model.cell": "delta"}),
            50_257,
            Program("training", 2, 4),
            "v5e:2x4",
        ),
    ],
    ids=("the paper's recipe", "in two microbatches", "delta"),
)
def test_the_plan_without_compiling_is_near(config, vocab, program, name):
    there = tpu(name)
    found = plan.compile_for(config, vocab, program, there)
    assert isinstance(found, Compiled)
    planned = program.planned(config, vocab, len(there.devices))
    assert planned == pytest.approx(found.needed, rel=0.15)


# What config.json of HuggingFaceTB/SmolLM2-135M says of its sizes.
SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}  # fmt: skip


@SLOW
@pytest.mark.parametrize(
    ("size", "stage", "segments", "before"),
    [("SmolLM2-135M", 1, 8, 222.5e9), ("GPT-2 base", 2, 4, 188.8e9)],
)
def test_a_delta_step_on_eight_chips(tmp_path, size, stage, segments, before):
    """64 texts, weights shared by fours: at most 3 GiB of temporaries, 60 % of the bytes of plain
    products, and no less than 55 % of the peak can be had (docs/howto/tpu.md)."""
    there = tpu("v5e:2x4")
    if size == "GPT-2 base":
        config, vocab = preset("gpt2-tpu", **{"model.cell": "delta", "mesh.fsdp": 4}), 50_257
    else:
        (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
        words = {"init": str(tmp_path), "stages.1.batch": 64, "optimizer.accumulate": 1}
        made = cli.apply_overrides(cli.load_config(f"{MULTITASK}:pretrained-tpu"), words)
        config, vocab = shapes.settle(made), SMOLLM2["vocab_size"]
    program = Program("training", stage, segments)
    found = plan.compile_for(config, vocab, program, there)
    assert isinstance(found, Compiled)
    assert program.planned(config, vocab, 8) == pytest.approx(found.needed, rel=0.15)
    assert found.temporaries < 3 * hardware.GIB and found.counts.moved < 0.6 * before
    bound = found.counts.flops / there.chip.flops / found.seconds(there.chip)
    assert bound > 0.55
