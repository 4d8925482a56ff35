"""What `convert` makes of trained models: the mean of several, and one with more layers."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_weights import workdir

from rmt_jax import api, cli, convert, models
from rmt_jax.config import Config, Prompt, to_dict
from rmt_jax.conversion.deepen import old_layers
from rmt_jax.models import recurrence
from rmt_jax.models.io import weights


def test_a_mean_of_runs(tmp_path, capsys):
    one, before = workdir(tmp_path / "one")
    (one / "tokenizer").mkdir()
    (one / "tokenizer" / "tokenizer.json").write_text("{}")
    two, _ = workdir(tmp_path / "two")
    other = {name: np.float32(2) * value + 1 for name, value in before.items()}
    config = Config(model=tiny.settings(remat=False), prompt=Prompt("none", "every", tiny.WORDS))
    weights.save(two, weights.unflatten(other))
    (two / "config.json").write_text(json.dumps(to_dict(config)))
    out = tmp_path / "mean"
    assert convert.main(["mean", "--of", f"{one}:0.75", f"{two}:0.25", "--out", str(out)]) == 0
    found = weights.flatten(weights.load(out))
    for name, value in before.items():
        np.testing.assert_allclose(found[name], 1.25 * value + 0.25, atol=1e-6)
    assert (out / "tokenizer" / "tokenizer.json").read_text() == "{}"
    read = [json.loads((folder / "config.json").read_text()) for folder in (out, one)]
    assert read[0] == read[1]  # how it runs is the first one's
    assert f"0.75 {one} + 0.25 {two}" in capsys.readouterr().out
    convert.main(["mean", "--of", str(one), str(two), "--out", str(tmp_path / "half")])
    half = weights.flatten(weights.load(tmp_path / "half"))
    np.testing.assert_allclose(half["backbone/wte"], 1.5 * before["backbone/wte"] + 0.5, atol=1e-6)


def test_a_mean_of_one_run_is_that_run_bit_for_bit(tmp_path):
    run, before = workdir(tmp_path / "run")
    convert.mean_weights({str(run): 1.0}, tmp_path / "out")
    after = weights.flatten(weights.load(tmp_path / "out"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_memory_tokens_of_a_memory_without_any_do_not_tell_models_apart(tmp_path):
    one, before = workdir(tmp_path / "one", cell="delta", memory_tokens=3)
    two, _ = workdir(tmp_path / "two", cell="delta", memory_tokens=5)
    convert.mean_weights({str(one): 0.5, str(two): 0.5}, tmp_path / "out")
    after = weights.flatten(weights.load(tmp_path / "out"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    three, _ = workdir(tmp_path / "three", cell="rmt", memory_tokens=3)
    four, _ = workdir(tmp_path / "four", cell="rmt", memory_tokens=5)
    with pytest.raises(cli.Usage, match="model.memory_tokens is 3 and 5"):
        convert.mean_weights({str(three): 0.5, str(four): 0.5}, tmp_path / "other")


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (["a"], "wants two or more runs, each once"),
        (["a:0.5", "a:0.5"], "wants two or more runs"),
        (["a:0.6", "a:0.4"], "wants two or more runs, each once"),
        (["a:0.5", "b:0.6"], "the shares add up to 1.1, not to 1"),
        (["a:nan", "b:0.6"], "the shares add up to nan"),
        (["a:half", "b:0.6"], "--of a:half: 'half' is no share"),
        (["a", "wider"], "different models: model.width is "),
        (["a", "told"], "different models: prompt.source is 'none' and 'description'"),
        (["a", "words"], "backbone/wte has shape"),
        (["a", "read"], "different models: data.tokenizer is 'builtin' and 'gpt2'"),
        (["a", "nothing"], "There is no folder nothing here"),
    ],
)
def test_a_mean_of_what_has_none(tmp_path, capsys, monkeypatch, of, sentence):
    monkeypatch.chdir(tmp_path)
    for name, prompt, changes in (
        ("a", None, {}), ("b", None, {}), ("wider", None, {"width": 32}),
        ("told", Prompt("description", "every", tiny.WORDS), {}), ("words", None, {}),
        ("read", None, {}),
    ):  # fmt: skip
        folder, flat = workdir(Path(name), prompt, **changes)
        if name == "read":
            config = json.loads((folder / "config.json").read_text())
            config["data"]["tokenizer"] = "gpt2"
            (folder / "config.json").write_text(json.dumps(config))
        if name == "words":
            flat["backbone/wte"] = flat["backbone/wte"][:-1]
            config = Config(model=tiny.settings(), prompt=Prompt("none", "every", tiny.WORDS))
            weights.save(folder, weights.unflatten(flat))
    with pytest.raises(SystemExit) as stop:
        cli.run(convert.main, ["mean", "--of", *of, "--out", "out"])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("cell", tiny.cells("delta", "prmt"))
@pytest.mark.parametrize(
    "backbone", ("gpt2", pytest.param("llama", marks=pytest.mark.slow),
    pytest.param("gemma3", marks=pytest.mark.slow), pytest.param("neox", marks=pytest.mark.slow))
)  # fmt: skip
def test_a_deeper_model_starts_as_the_same(tmp_path, capsys, cell, backbone):
    own = {"conv_width": 2} if backbone == "gpt2" else {"positions": "rotary"}
    run, before = workdir(tmp_path / "run", cell=cell, backbone=backbone, **own)
    out = tmp_path / "out"
    words = ["deepen", "--workdir", str(run), "--layers", "5", "--out", str(out)]
    assert convert.main(words) == 0
    assert "2 layers -> 5, new: 1, 3, 4" in capsys.readouterr().out
    (tokens, mask), found = tiny.text(segments=2), []
    for folder, layers in ((run, 2), (out, 5)):
        graph, _ = tiny.model(cell=cell, backbone=backbone, **own | {"layers": layers})
        model = models.merge(graph, weights.load(folder))
        memory = model.initial(len(tokens))
        found.append(recurrence.all_logits(model, memory, tokens, mask)[0])
    np.testing.assert_array_equal(*found)
    after = weights.flatten(weights.load(out))
    for name, value in before.items():
        same = after[name] if after[name].shape == value.shape else after[name][[1, 4]]
        np.testing.assert_array_equal(same, value)
    with pytest.raises(cli.Usage, match="has 5 already"):
        convert.main(["deepen", "--workdir", str(out), "--layers", "5", "--out", str(out / "x")])


def test_new_layers_stand_before_the_last_ones():
    assert old_layers(4, 6) == [0, 1, 3, 5]
    assert old_layers(2, 5) == [1, 4] and old_layers(3, 6) == [1, 3, 5]


@pytest.mark.parametrize("cell", ("rmt", "delta", "kv"))
def test_a_model_gets_a_new_memory(tmp_path, capsys, cell):
    """As a training draws it that starts from the model, which reads as it did."""
    run, before = workdir(tmp_path / "run", cell="none", positions="rotary")
    out, options = tmp_path / "out", ['--config.model.cell_options={"slots": 16}'] * (cell == "kv")
    words = ["memory", "--from", str(run), "--cell", cell, "--out", str(out), *options]
    assert convert.main([*words, "--config.model.segment_tokens=16"]) == 0
    assert f"gpt2 with {cell}: 2 layers" in capsys.readouterr().out
    model = api.load(out)
    assert (model.config.model.cell, model.segment_tokens) == (cell, 16)
    after = weights.flatten(jax.tree.map(np.asarray, model.params))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert any(name.startswith("memory/") for name in after)
    if cell == "rmt":  # drawn on the scale of these embeddings
        assert 0.5 < after["memory/tokens"].std() / before["backbone/wte"].std() < 2
    if cell == "kv":
        (tokens, mask), plain = tiny.text(segments=2), api.load(run, segment_tokens=16)
        flat = (tokens.reshape(2, -1), mask.reshape(2, -1))
        for one, two in zip(model.forward(*flat)[:1], plain.forward(*flat)[:1], strict=True):
            np.testing.assert_allclose(one[flat[1]], two[flat[1]], atol=1e-5)
    # The same cell keeps its weights and settings.
    words = ["memory", "--from", str(out), "--cell", cell, "--out", str(tmp_path / "again")]
    assert convert.main([*words, "--config.model.segment_tokens=8"]) == 0
    again = api.load(tmp_path / "again")
    wanted = dataclasses.replace(model.config.model, segment_tokens=8)
    assert again.config.model == wanted
    for name, value in weights.flatten(jax.tree.map(np.asarray, again.params)).items():
        np.testing.assert_array_equal(value, after[name])


def test_a_new_memory_changes_the_model_alone(tmp_path, capsys):
    run, _ = workdir(tmp_path / "run", cell="none")
    for more, sentence in (
        (["--config.data.seed=3"], "--config.data.seed is no field of the model"),
        (["--config.model.layers=3"], "It has 2 layers"),
        (["--steps=3"], "Unknown argument '--steps=3'"),
        (["--cell", "kvv"], "Did you mean"),
    ):
        words = ["memory", "--from", str(run), "--cell", "delta", "--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as stop:
            cli.run(convert.main, [*words, *more])
        assert stop.value.code == 2 and sentence in capsys.readouterr().err, more
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        cli.run(convert.main, ["export", "--workdir", "x", "--out", "y", "--config.model.cell=kv"])
    assert "Unknown argument '--config.model.cell=kv'" in capsys.readouterr().err
