"""Trainings that start from a GGUF file: its weights, its shape, its tokenizer."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from faulty_run import quick
from flax import nnx
from gguf_files import model, tensors_of, write

import rmt_jax
from rmt_jax import cli, convert, models, validation
from rmt_jax import config as cfg
from rmt_jax.data import tokenizer
from rmt_jax.models.io import hub, shapes, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.training import run as training

gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]' brings gguf")


def test_a_training_starts_from_a_file(tmp_path):
    config, flat = model()
    file = write(tmp_path / "m.gguf", config, tensors_of(config, flat, "llama"))
    prompt = cfg.Prompt("none")
    tree = cfg.Config(model=tiny.settings(**{
        "backbone": "llama", "cell": "delta", "width": 32, "heads": 4,
        "backbone_options": config.backbone_options}), prompt=prompt)  # fmt: skip
    fresh = models.split(models.build(tree.model, prompt, tiny.VOCAB, 1, nnx.Rngs(1)))[1]
    started = weights.flatten(hub.initialise(fresh, tree, str(file)))
    assert all(np.array_equal(started[f"backbone/{name}"], flat[name]) for name in flat)


def with_bytes(more=()):
    """The metadata of a tokenizer of 256 bytes, two control tokens and `more`."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), *more]

    def metadata(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
        writer.add_token_merges([])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)

    return metadata, len(tokens)


def test_a_tokenizer_is_named_by_what_it_comes_with(tmp_path):
    config, flat = model()
    more, _ = with_bytes()
    flat["embed_tokens"] = np.zeros((260, 32), np.float32)
    file = write(tmp_path / "m.gguf", config, tensors_of(config, flat, "llama"), more=more)
    convert.main(["import", "--from", str(file), "--out", str(tmp_path / "run")])

    def named(init, name="init"):
        return tokenizer.load(cfg.Config(init=init, data=cfg.Data(tokenizer=name)).tokenizer)

    own = named("", str(file))
    assert (own.vocab_size, own.pad, own.end) == (258, 0, 1)
    for other in (named(str(file)), named(str(tmp_path / "run"))):
        assert other.fingerprint() == own.fingerprint() and other.end == own.end
    assert named("backbone").name == "builtin" == named(str(file), "builtin").name
    with pytest.raises(ValueError, match="data.tokenizer=init is the tokenizer of the weights"):
        validation.validate(cfg.Config(data=cfg.Data(tasks=("qa1",), tokenizer="init")))
    bare = write(tmp_path / "bare.gguf", config, tensors_of(config, flat, "llama"))
    with pytest.raises(ValueError, match="bare holds no tokenizer: put"):
        named(str(bare))
    bare.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read as GGUF"):
        named(str(bare))


def preset(name: str, *overrides: str) -> cfg.Config:
    config = Path(__file__).parents[1] / "configs" / "multitask.py"
    return cli.apply_overrides(
        cli.load_config(f"{config}:{name}"), cli.parse_overrides(list(overrides))
    )


# What config.json of HuggingFaceTB/SmolLM2-135M-Instruct says of its sizes.
SMOLLM2_SAYS = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "vocab_size": 49152,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ("pretrained", "pretrained-rmt", "pretrained-lora", "pretrained-none")
)
def test_the_preset_takes_the_shape_of_smollm2(name, tmp_path, monkeypatch):
    config = preset(name)
    validation.validate(config)
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2_SAYS))
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "resolve", lambda name, only: tmp_path)
        config = shapes.settle(config)
    models.check(config.model, config.prompt)
    assert config.tokenizer == config.init and config.init.endswith("SmolLM2-135M-Instruct")
    made = models.outline(config.model, config.prompt, 49152, 5).shapes
    flat = {n: v for n, v in weights.flatten(made).items() if n.startswith("backbone/")}
    assert sum(np.prod(v.shape) for v in flat.values()) == 134_515_008
    found = hub.infer("llama", flat, SMOLLM2_SAYS, "SmolLM2")[0].model
    options = [models.BACKBONES["llama"].options(m) for m in (config.model, found)]
    assert options[0] == options[1]
    same = ("backbone", "layers", "width", "heads", "positions", "max_positions", "tied_head")
    assert all(getattr(config.model, field) == getattr(found, field) for field in same)


def test_the_preset_trains_from_a_file(tmp_path, monkeypatch):
    """The whole way on a small file, whose embedding has two rows that belong to no token."""
    quick(monkeypatch.setattr)
    more, tokens = with_bytes()
    monkeypatch.setattr(tiny, "VOCAB", tokens + 2)
    config, flat = model()
    file = write(tmp_path / "m.gguf", config, tensors_of(config, flat, "llama"), more=more)
    overrides = (f"init={file}", "model.d_mem=8", "prompt.tokens=80", "data.tasks=qa1",
        "stages.0.steps=1",
        "stages.1.steps=0", "stages.2.steps=0", "stages.0.batch=1", "stages.1.batch=1",
        "stages.2.batch=1", "optimizer.accumulate=1", "lora.rank=2", "model.dtype=float32",
        "evaluation.samples=1", "evaluation.batch=1",
    )  # fmt: skip
    found = preset("pretrained-lora", *(f"--config.{line}" for line in overrides))
    validation.validate(found)
    assert training.run(found, tmp_path / "run") == 0
    trained = rmt_jax.load(tmp_path / "run")
    own = trained.params["backbone"]
    assert trained.vocab == trained.tokenizer.vocab_size == tokens
    assert np.array_equal(own["embed_tokens"], flat["embed_tokens"][:tokens])
    assert (np.asarray(own["blocks"]["query"]["kernel"]) != flat["blocks/query/kernel"]).any()
    said = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (said["backbone"], said["layers"], said["width"]) == ("llama", 2, 32)
    assert said["backbone_options"] == dict(hub.open_source(file).config.model.backbone_options)
    # The same command, after the file has gone: it has nothing to do, and finds that out.
    file.unlink()
    assert training.run(found, tmp_path / "run") == 0


@pytest.mark.parametrize("tied", (True, False))
def test_an_embedding_starts_with_a_row_per_token_of_its_own_tokenizer(tmp_path, tied):
    config, flat = model()
    if not tied:
        flat["head"] = flat["embed_tokens"][::-1] * 2
    source = str(write(tmp_path / "m.gguf", config, tensors_of(config, flat, "llama")))
    made = dataclasses.replace(config, tied_head=tied)
    for tokens in (tiny.VOCAB - 2, tiny.VOCAB, tiny.VOCAB + 1):
        built = models.build(made, cfg.Prompt("none"), tokens, 1, nnx.Rngs(1))
        fresh = models.split(built)[1]
        tree = cfg.Config(made, cfg.Prompt("none"), init=source, data=cfg.Data(tokenizer="init"))
        found = hub.initialise(fresh, tree, source)["backbone"]
        for name in ("embed_tokens",) if tied else ("embed_tokens", "head"):
            known = min(tokens, tiny.VOCAB)
            assert np.array_equal(found[name][:known], flat[name][:known])
            added = found[name][known:]  # as drawn, as large as the source's
            assert found[name].shape == (tokens, 32) and (not added.size or added.std() > 0)
        if tokens != tiny.VOCAB:
            with pytest.raises(WeightsError, match="row per token: data.tokenizer=init"):
                hub.initialise(fresh, tree.replace(data=cfg.Data()), source)
