"""`doctor --plan CONFIG --compile TPU`: the compiler's figures, refusals, and the way out."""

from pathlib import Path

import pytest

from rmt_jax import cli, doctor
from rmt_jax.config import ConfigError, update
from rmt_jax.runtime import topology
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


@SLOW
def test_a_plan_is_printed(capsys):
    tpu("v5e:2x2")
    assert doctor.main(["--plan", f"{MULTITASK}:smoke", "--compile", "v5e:2x2"]) == 0
    told = capsys.readouterr().out
    for text in ("data=4 · fsdp=1", "15.75 GiB each", "training, 16 texts of 2 segments", "libtpu"):
        assert text in told
    assert "does not fit" not in told


@SLOW
def test_a_program_that_does_not_fit_gets_the_setting_that_helps(capsys):
    """Many texts of a small model: what the segments keep is too much, without remat."""
    tpu("v5e:2x2")
    words = {"model.remat": False, "model.width": 256, "model.layers": 4, "data.align": "left"}
    words |= {"stages.0.steps": 0, "stages.1.segments": 8, "stages.1.batch": 4096}
    words |= {"stages.1.question_rates": "[0.0]"}
    given = [f"--config.{name}={value}" for name, value in words.items()]
    assert doctor.main(["--plan", f"{MULTITASK}:smoke", "--compile", "v5e:2x2", *given]) == 1
    told = capsys.readouterr().out
    assert "training, 4096 texts of 8 segments: does not fit, it needs" in told
    assert "it fits with --config.model.remat=true:" in told


@SLOW
@pytest.mark.parametrize(
    ("config", "vocab", "program", "name"),
    [
        (preset("gpt2"), 50_257, Program("training", 2, 4), "v5e:2x4"),
        (preset("small"), 1024, Program("training", 0, 8), "v5e:2x2"),
    ],
    ids=("the paper's recipe", "the default preset"),
)
def test_the_plan_without_compiling_is_near(config, vocab, program, name):
    there = tpu(name)
    found = plan.compile_for(config, vocab, program, there)
    assert isinstance(found, Compiled)
    planned = program.planned(config, vocab, len(there.devices))
    assert planned == pytest.approx(found.needed, rel=0.15)
