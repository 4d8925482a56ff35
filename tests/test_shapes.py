"""`model.backbone=init`: the shape of weights from their config alone, as the weights have it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import cli, convert, doctor, models, validation
from rmt_jax import config as cfg
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import hub, names, shapes, weights
from rmt_jax.models.io.weights import WeightsError

MULTITASK = str(Path(__file__).parents[1] / "configs" / "multitask.py")
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 32.0, "rope_base": 5e5}
GEMMA3 = {"kv_heads": 1, "head_width": 8, "mlp_width": 24, "global_layers": (1,), "window": 40}
NEOX = {"mlp_width": 24, "rotary_width": 4, "activation": "gelu_tanh"}
FAMILIES = {
    "llama": ("llama", {"kv_heads": 1, "mlp_width": 40} | LLAMA3, True),
    "separate head": ("llama", {"head_width": 12, "rope_base": 300.0}, False),
    "mistral": ("llama", {"window": 40}, False),
    "qwen2": ("llama", {"qkv_bias": True, "norm_epsilon": 1e-6}, True),
    "qwen3": ("llama", {"qk_norm": True, "head_width": 6}, True),
    "gemma3": ("gemma3", GEMMA3, True),
    "neox": ("neox", NEOX, False),
    "gpt2": ("gpt2", {}, True),
    "gpt2 with a head": ("gpt2", {}, False),
}


def folder(path: Path, backbone: str, options: dict, tied: bool, **sizes) -> Path:
    """A Hugging Face folder of a drawn model."""
    rotary = {} if backbone == "gpt2" else {"positions": "rotary"}
    sizes = {"backbone_options": options} | rotary | sizes
    config = tiny.settings(backbone=backbone, cell="none", tied_head=tied, **sizes)
    built = models.build(config, cfg.Prompt("none"), tiny.VOCAB, 1, nnx.Rngs(0))
    flat = {n: np.asarray(v) for n, v in weights.flatten(models.split(built)[1]).items()}
    theirs = names.to_theirs(flat, BACKBONES[backbone], CELLS["none"])
    path.mkdir()
    theirs = {name: np.ascontiguousarray(value) for name, value in theirs.items()}
    weights.write(path / "model.safetensors", theirs, {})
    said = BACKBONES[backbone].to_hf_config(config, hub.part_of(flat, "backbone"))
    (path / "config.json").write_text(json.dumps(said))
    return path


def config(init, **model) -> cfg.Config:
    return cfg.Config(cfg.Model("init", **model), init=str(init), data=cfg.Data(tasks=("qa1",)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_json_says_what_the_tensors_do(tmp_path, family):
    path = folder(tmp_path / "model", *FAMILIES[family])
    held = hub.open_source(path).config.model
    (path / "model.safetensors").unlink()
    found = shapes.of_source(str(path))
    assert found.model == held and found.vocab == tiny.VOCAB
    settled = shapes.settle(config(path, cell="rmt", segment_tokens=8, memory_tokens=2)).model
    assert (settled.cell, settled.segment_tokens) == ("rmt", 8)
    for name in ("backbone", "tied_head", *shapes.SIZES, "max_positions"):
        assert getattr(settled, name) == getattr(held, name)
    backbone = BACKBONES[held.backbone]
    assert backbone.options(settled) == backbone.options(held)


def test_a_run_an_export_and_adapters(tmp_path):
    """Ours say everything themselves, and what ships with the package does."""
    own = shapes.settle(config("backbone", cell="delta", segment_tokens=64)).model
    known = hub.open_source("backbone").config.model
    assert (own.conv_width, own.positions, own.width) == (6, "alibi", 64)
    assert own.backbone_options == known.backbone_options and own.backbone == "gpt2"
    assert shapes.of_source("backbone").vocab == weights.load(hub.resolve("backbone"))[
        "backbone"]["wte"].shape[0]  # fmt: skip
    convert.main(["export", "--workdir", "backbone", "--out", str(tmp_path / "out")])
    assert shapes.settle(config(tmp_path / "out", segment_tokens=64)).model == own
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "out")}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    assert shapes.settle(config(adapter, segment_tokens=64)).model == own


def test_a_gguf_file_is_not_turned_into_numbers(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]' brings gguf")
    import test_gguf

    model, flat = test_gguf.model(rope_base=700.0)
    tensors = test_gguf.tensors_of(model, flat, "llama")
    file = test_gguf.write(tmp_path / "m.gguf", model, tensors)
    rows = []
    whole = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda x, k: (rows.append(len(x)), whole(x, k))[1])
    found = shapes.of_source(str(file))
    assert (found.model.backbone, found.model.layers, found.vocab) == ("llama", 2, tiny.VOCAB)
    assert found.model.backbone_options["rope_base"] == 700.0
    assert max(rows) == 1  # that each kind is known


def test_a_training_may_choose_what_a_start_allows(tmp_path):
    path = folder(tmp_path / "model", "gpt2", {}, True)
    settled = shapes.settle(config(path, conv_width=3, tied_head=False, max_positions=24)).model
    assert (settled.conv_width, settled.tied_head, settled.max_positions) == (3, False, 24)


def test_a_run_that_goes_on_asks_nobody(tmp_path):
    was = config("gone", cell="rmt").replace(model=tiny.settings())
    assert shapes.settle(config("gone", cell="rmt"), was).model.width == 16
    with pytest.raises(WeightsError, match="is not there; give the folder"):
        shapes.settle(config(tmp_path / "other"), was)


def test_what_cannot_be(tmp_path):
    with pytest.raises(cfg.ConfigError, match="config.init is empty: name a folder"):
        validation.validate(config(""))
    path = folder(tmp_path / "model", *FAMILIES["llama"])
    with pytest.raises(cfg.ConfigError, match="takes model.layers from .*which has 2, but .* 5:"):
        shapes.settle(config(path, layers=5))
    with pytest.raises(cfg.ConfigError, match="which has kv_heads=1, but the config says 2"):
        shapes.settle(config(path, backbone_options={"kv_heads": 2}))
    with pytest.raises(cfg.ConfigError, match="which has rows=None, but the config says 2"):
        shapes.settle(config(path, backbone_options={"rows": 2}))
    said = json.loads((path / "config.json").read_text())
    for change, sentence in (
        ({"model_type": "mamba"}, "model_type = 'mamba', but only .*'llama'.*can be loaded"),
        ({"hidden_act": "relu"}, "says hidden_act = 'relu'"),
    ):
        (path / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(WeightsError, match=sentence):
            shapes.settle(config(path))
    (path / "config.json").unlink()
    (path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no config.json and no weights"):
        shapes.settle(config(path))


def test_a_plan_needs_no_weights(tmp_path, capsys):
    path = folder(tmp_path / "model", *FAMILIES["llama"])
    (path / "model.safetensors").unlink()
    words = ("--plan", f"{MULTITASK}:pretrained-rmt", f"--config.init={path}", "--device", "v5e")
    assert doctor.main(list(words)) == 0
    told = capsys.readouterr().out
    assert f"2 layers of 16, vocabulary {tiny.VOCAB};" in told


def test_the_presets_settle_to_nothing_open():
    for name in ("pretrained", "pretrained-rmt", "pretrained-lora"):
        found = cli.load_config(f"{MULTITASK}:{name}")
        assert found.model.backbone == "init" and found.tokenizer == found.init
        settled = shapes.settle(found.replace(init="backbone")).model
        models.check(settled, found.prompt)
