"""Weights in and out: bit for bit, by closed list, and with a sentence for what is no weight."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from rmt_jax import api, cli, convert, files
from rmt_jax.config import Config, Data, Prompt, to_dict
from rmt_jax.data.tokenizer import load
from rmt_jax.models.backbones.gpt2 import GPT2
from rmt_jax.models.io import hub, lazy, names, torch_pickle, weights
from rmt_jax.models.io.folder import ASSETS, argument
from rmt_jax.models.io.weights import WeightsError
from rmt_jax.runtime.workdir import read_config
from rmt_jax.training import run as training

GOLDEN = Path(__file__).parent / "golden"
builtin = load("builtin")


def workdir(folder: Path, prompt=None, **changes) -> tuple[Path, dict]:
    """A run's folder as training leaves it."""
    prompt = prompt or Prompt("none", "every", tiny.WORDS)
    data = Data(tasks=("qa1", "qa2"))
    config = Config(model=tiny.settings(**changes), prompt=prompt, data=data)
    _, params = tiny.model(prompt, **changes)
    weights.save(folder, params)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder, weights.flatten(params)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "none"},
        {"cell": "rmt", "position_layout": "wrap_pos", "tied_head": False},
        {"cell": "prmt", "positions": "rotary"},
        {"cell": "armt", "position_layout": "wrap_pos"},
        {"cell": "armt", "positions": "alibi", "conv_width": 3},
        {"cell": "delta", "positions": "alibi", "conv_width": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_export_and_import_give_the_same_bits(tmp_path, changes):
    prompt = Prompt("learned", "every", tiny.WORDS) if "conv_width" in changes else None
    run, before = workdir(tmp_path / "run", prompt, **changes)
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    (run / "generation_config.json").write_text('{"eos_token_id": 5}')
    convert.export_weights(run, tmp_path / "out")
    inside = {path.name for path in (tmp_path / "out").iterdir()}
    assert inside == {
        "model.safetensors", "config.json", "generation_config.json", "README.md", "tokenizer.json",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("In PyTorch" in card) == (changes["cell"] != "delta")  # a memory of our own
    convert.import_weights(tmp_path / "out", tmp_path / "back")
    after = weights.flatten(weights.load(tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (run / "config.json").read_text()
    )
    assert (tmp_path / "back" / "tokenizer" / "tokenizer.json").is_file()
    assert hub.open_source(tmp_path / "back").ends == (5,)


@pytest.mark.parametrize("kind", ("rmt", "armt"))
def test_the_authors_checkpoint_survives_the_round_trip(tmp_path, kind, capsys):
    convert.main(["import", "--from", str(GOLDEN / kind), "--out", str(tmp_path / "run")])
    own = ", d_mem 8, nu 3" if kind == "armt" else ""
    assert f"4 memory tokens{own}, segments of 12" in capsys.readouterr().out
    convert.main(["export", "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    wanted = torch_pickle.read(GOLDEN / kind / "pytorch_model.bin")
    found = weights.read_safetensors(tmp_path / "out" / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "kind, rows, layout, base",
    [
        ("rmt", 64, "plain", 64),
        ("rmt", 64 + 2 * 4, "wrap_pos", 64),
        ("armt", 64 + 4, "wrap_pos", 64),
        ("rmt", 100, "plain", 100),
    ],
)
def test_sizes_without_a_config(kind, rows, layout, base):
    theirs = torch_pickle.read(GOLDEN / kind / "pytorch_model.bin")
    flat = names.to_ours(theirs, GPT2, kind)
    wide = {name: np.zeros(1) for name in ()} | flat
    wide["backbone/wpe"] = np.zeros((rows, 64), np.float32)
    wide["backbone/wte"] = np.zeros((211, 64), np.float32)
    config, guessed = hub.infer("gpt2", wide, {}, kind)
    m = config.model
    assert (m.position_layout, m.max_positions) == (layout, base)
    assert (m.cell, m.layers, m.heads, m.memory_tokens, m.segment_tokens) == (kind, 3, 1, 4, 512)
    assert m.d_mem == (8 if kind == "armt" else 64)
    assert any("segment_size 512" in guess for guess in guessed)
    with pytest.raises(WeightsError, match='"n_head"'):
        hub.infer("gpt2", flat, {}, kind)  # width 48 is no multiple of 64


def write(folder: Path, tensors: dict, config: dict | None = None) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file(
        {n: np.ascontiguousarray(v) for n, v in tensors.items()}, folder / "model.safetensors"
    )
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_wrong_folders_and_architectures(tmp_path):
    good = torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin")
    said = json.loads((GOLDEN / "rmt" / "config.json").read_text())
    bert = {"bert.embeddings.word_embeddings.weight": np.zeros((4, 4)), "cls.bias": np.zeros(4)}
    less = {n: v for n, v in good.items() if "h.1.mlp.c_fc.bias" not in n}
    more = good | {"memory_cell.model.transformer.h.0.gate.weight": np.zeros(3)}
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    cases = [
        (tmp_path / "nowhere", "is not there; give the folder"),
        (tmp_path / "empty", "holds no weights: expected model.safetensors"),
        (tmp_path / "cut", "can't be read as safetensors"),
        (
            write(tmp_path / "bert", bert),
            "no model that can be loaded .*bert.embeddings.word_embeddings.weight",
        ),
        (write(tmp_path / "less", less, said), "up/bias is missing for layer 1"),
        (write(tmp_path / "more", more, said), "gate.weight"),
        (write(tmp_path / "neo", good, {"model_type": "gpt_neo"}), "model_type = 'gpt_neo'"),
        (write(tmp_path / "relu", good, {"activation_function": "relu"}), "only 'gelu_new'"),
    ]
    for folder, sentence in cases:
        with pytest.raises(WeightsError, match=sentence):
            hub.open_source(folder)
    (tmp_path / "relu" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        hub.open_source(tmp_path / "relu")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"n_layer": 4}, "n_layer = 4, but its tensors have 3"),
        ({"n_embd": 64}, "n_embd = 64, but its tensors have 48"),
        ({"vocab_size": 50257}, "vocab_size = 50257, but its tensors have 211"),
        ({"n_positions": 1024}, "n_positions = 1024, but its tensors have 56 or 64"),
        ({"num_mem_tokens": 10}, "num_mem_tokens = 10, but its tensors have 4"),
        ({"tie_word_embeddings": False}, "False, but its tensors have no output emb.*lm_head"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path, change, sentence):
    """A last layer that was lost, another model's config: as HF's and as the authors' files."""
    theirs = torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin")
    said = json.loads((GOLDEN / "rmt" / "config.json").read_text())
    theirs = {n: v for n, v in theirs.items() if "lm_head" not in n}
    assert hub.open_source(write(tmp_path / "good", theirs, said)).config.model.layers == 3
    with pytest.raises(WeightsError, match=sentence):
        hub.open_source(write(tmp_path / "bad", theirs, said | change))


def test_a_head_of_its_own_in_a_model_that_is_said_to_be_tied(tmp_path):
    theirs = torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin")
    said = json.loads((GOLDEN / "rmt" / "config.json").read_text())
    theirs["memory_cell.model.lm_head.weight"] = theirs["memory_cell.model.lm_head.weight"] + 1
    assert not hub.open_source(write(tmp_path / "own", theirs, said)).config.model.tied_head
    with pytest.raises(WeightsError, match="= True, but its tensors have an output emb.*own"):
        hub.open_source(write(tmp_path / "tied", theirs, said | {"tie_word_embeddings": True}))


@pytest.mark.parametrize("lost, name", [("bias", "attn.c_attn.bias"), ("c_attn", "c_attn.weight")])
def test_a_kind_of_tensor_that_is_missing_is_named(tmp_path, lost, name):
    theirs = torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin")
    said = json.loads((GOLDEN / "rmt" / "config.json").read_text())
    left = {n: v for n, v in theirs.items() if lost not in n}
    folder = write(tmp_path / "left", left, said)
    with pytest.raises(WeightsError, match=rf"transformer\.h\.N\..*{name}"):
        opened = hub.open_source(folder)
        hub.fit(opened.config, opened.params, str(folder))


def test_a_byte_order_mark_in_front_of_json(tmp_path):
    run, _ = workdir(tmp_path / "run")
    builtin.save(run / "tokenizer")
    before = api.load(run)
    for file in (run / "config.json", run / "tokenizer" / "rmt_tokens.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    after = api.load(run)
    assert after.config == before.config == read_config(run / "config.json")
    assert after.tokenizer.fingerprint() == before.tokenizer.fingerprint()


@pytest.mark.parametrize(
    "name",
    ["config.json", "pytorch_model.bin", "tokenizer.json", "generation_config.json", "vocab.json"],
)
def test_a_pointer_of_git_lfs_is_no_file_of_a_checkpoint(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "rmt", "cloned")
    hub.open_source("./cloned")
    (tmp_path / "cloned" / name).write_bytes(files.POINTER + b"v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(files.PointerError, match=f"{name} is a pointer of git-lfs.*git lfs pull"):
        convert.main(["import", "--from", "./cloned", "--out", "run"])
    assert not Path("run").exists()  # nothing half-written


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "config.json", "tokenizer/rmt_tokens.json"]
)
def test_a_pointer_of_git_lfs_is_no_file_of_a_run(tmp_path, name):
    run, _ = workdir(tmp_path / "run")
    builtin.save(run / "tokenizer")
    assert api.load(run).tokenizer.vocab_size == builtin.vocab_size
    (run / name).write_bytes(files.POINTER + b"v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(files.PointerError, match=f"{Path(name).name} is a pointer of git-lfs"):
        api.load(run).tokenizer  # noqa: B018


def test_a_time_in_the_name_of_a_run_is_no_share(tmp_path, monkeypatch):
    (tmp_path / "r" / "2026-01-01T10:30").mkdir(parents=True)
    (tmp_path / "r" / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    first = "r/2026-01-01T10:30"
    assert convert.shares([first, "r/b"]) == {first: 0.5, "r/b": 0.5}
    assert convert.shares([f"{first}:0.7", "r/b:0.3"]) == {first: 0.7, "r/b": 0.3}


def test_a_folder_with_the_name_of_what_ships(tmp_path, monkeypatch):
    workdir(tmp_path / "multitask")
    monkeypatch.chdir(tmp_path)
    own = hub.open_source(tmp_path / "multitask").config
    for argv in (
        ["import", "--from", "multitask", "--out", "x"],
        ["mean", "--of", "multitask:0.5", "backbone:0.5", "--out", "x"],
    ):
        with pytest.raises(WeightsError) as told:
            convert.main(argv)
        assert f"is a folder here ({tmp_path / 'multitask'})" in str(told.value)
        assert f"write ./multitask for the folder, or {ASSETS / 'multitask'}" in str(told.value)
    for folder in ("./multitask", Path("multitask"), tmp_path / "multitask"):
        assert hub.open_source(folder).config == own
    assert hub.open_source(ASSETS / "multitask").config != own
    assert [argument(Path(n)) for n in ("multitask", "runs/a")] == ["./multitask", "runs/a"]
    monkeypatch.chdir(ASSETS)  # there the name and the folder are the same
    assert hub.open_source("multitask").config != own


def test_a_run_evaluates_its_own_folder(tmp_path, monkeypatch, capsys):
    workdir(tmp_path / "multitask")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(training.evaluation, "evaluate", lambda model, **_: seen.append(model))
    monkeypatch.setattr(training.report, "write", lambda *_, **__: [])
    monkeypatch.setattr(training.report, "table", lambda _: "")
    training.finish(Path("multitask"))
    assert seen[0].config == hub.open_source(tmp_path / "multitask").config
    assert "ask --workdir ./multitask" in capsys.readouterr().out


def test_an_index_may_not_lead_outside(tmp_path):
    index = {"weight_map": {"wte.weight": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside its own folder"):
        hub.open_source(tmp_path)


def test_segments_that_do_not_fit_the_positions(tmp_path):
    said = json.loads((GOLDEN / "rmt" / "config.json").read_text()) | {"segment_size": 60}
    folder = write(tmp_path / "long", torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin"), said)
    opened = hub.open_source(folder)
    with pytest.raises(ValueError, match="= 68 positions, but the backbone has 64"):
        hub.fit(opened.config, opened.params, "long")


def test_a_run_with_another_config_is_refused(tmp_path):
    run, _ = workdir(tmp_path / "run")
    other = Config(model=tiny.settings(cell="armt"), prompt=Prompt("none"))
    (run / "config.json").write_text(json.dumps(to_dict(other)))
    opened = hub.open_source(run)
    with pytest.raises(WeightsError, match="Missing: memory/layers/beta"):
        hub.fit(opened.config, opened.params, str(run))


def test_convert_does_not_write_over_anything(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    argv = ["import", "--from", str(GOLDEN / "rmt"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        cli.run(convert.main, argv)
    assert stop.value.code == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_exported_tokenizer_is_the_same_here_and_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    from rmt_jax.data import tokenizer

    own = tokenizer.load("builtin")
    run, _ = workdir(tmp_path / "run")
    own.save(run / "tokenizer")
    convert.export_weights(run, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == own.end
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Where is Mary? In the garden."
    assert theirs.encode(text, add_special_tokens=False) == own.encode(text)
    assert theirs.eos_token_id == own.end
    convert.import_weights(tmp_path / "out", tmp_path / "back")
    again = tokenizer.load(tmp_path / "back" / "tokenizer")
    assert (again.answer, again.end, again.encode(text)) == (own.answer, own.end, own.encode(text))


def test_written_weights_can_be_read_by_others(tmp_path):
    file = weights.write(tmp_path / "w.safetensors", {"a": np.ones(3, np.float32)}, {})
    (tmp_path / "like").touch()
    assert file.stat().st_mode == (tmp_path / "like").stat().st_mode


def test_files_are_those_of_the_library(tmp_path, monkeypatch):
    """Byte for byte, of numbers of any width, of lazy ones too, a row at a time."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {
        "b/half": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "b-single": rng.standard_normal((4, 2, 3)).astype(np.float32),
        "a": np.array([True, False, True]),
        "ä": np.array(3, np.float32),
        "none": np.zeros((0, 7), np.float32),
        "long": np.arange(5),
    }
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    save_file(tensors, theirs, {"format": "pt"})
    monkeypatch.setattr(lazy, "ROWS", 4)
    weights.write(ours, weights.open_safetensors(theirs), {"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_full_disk_leaves_nothing(tmp_path):
    def blocks(name, value):
        yield value[:1]
        raise OSError(errno.ENOSPC, "No space left on device")

    tensors = {"a": np.ones((2, 3), np.float32)}
    with pytest.raises(WeightsError, match="could not be written .*No space left.*make room"):
        weights.write(tmp_path / "w.safetensors", tensors, {}, blocks=blocks)
    assert not list(tmp_path.iterdir())


def test_half_the_size_in_bfloat16(tmp_path):
    _, params = tiny.model()
    file = weights.save(tmp_path, params, dtype="bfloat16")
    again = weights.flatten(weights.load(file))
    for name, value in weights.flatten(params).items():
        np.testing.assert_allclose(again[name], value, rtol=2**-8)


def test_a_training_starts_from_a_backbone(tmp_path):
    run, source = workdir(tmp_path / "run", cell="none", max_positions=40)
    config = Config(model=tiny.settings(), prompt=Prompt("learned", "every", tiny.WORDS))
    _, fresh = tiny.model(config.prompt)
    started = weights.flatten(hub.initialise(fresh, config, str(run)))
    assert np.array_equal(started["backbone/wte"], source["backbone/wte"])
    assert np.array_equal(started["backbone/wpe"], source["backbone/wpe"][:32])
    assert np.array_equal(started["prompt/table"], fresh["prompt"]["table"])
    scale = source["backbone/wte"].std() / fresh["backbone"]["wte"].std()
    np.testing.assert_allclose(
        started["memory/tokens"], fresh["memory"]["tokens"] * scale, rtol=1e-5
    )

    alibi = Config(model=tiny.settings(positions="alibi"), prompt=Prompt("none"))
    with pytest.raises(WeightsError, match="has backbone/wpe too many"):
        hub.initialise(tiny.model(positions="alibi")[1], alibi, str(run))
    wide = Config(model=tiny.settings(layers=1), prompt=Prompt("none"))
    with pytest.raises(WeightsError, match="this config"):
        hub.initialise(tiny.model(layers=1)[1], wide, str(run))
