"""Gates taught their own tokens: what stands where, and that nothing else changes."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import tiny_run

import rmt_jax
from rmt_jax import cli, gating, models
from rmt_jax.config import Data, GateTraining, to_dict
from rmt_jax.data import gate_labels
from rmt_jax.data.compose import Composer
from rmt_jax.data.gate_labels import BACKGROUND, FACT, PADDING, QUESTION
from rmt_jax.data.story import StoryOptions
from rmt_jax.models.cells import delta
from rmt_jax.models.io import weights
from rmt_jax.training import gate_regression
from rmt_jax.training import gates as gate_training
from rmt_jax.types import Prompt, Segment

DATA = Data(tasks=("qa1", "qa5"), align="sentence", new_names=0.5)
GATES = GateTraining(checked_segments=128)
LENGTH = 48


def labelled(model, seed=0):
    data = dataclasses.replace(DATA, seed=seed)
    return gate_labels.labelled_segments(model.config, model.tokenizer, data, GATES, "train")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers whose gates stand open; the second's depend on what the first makes."""
    settings = tiny_run.config("delta")
    settings = settings.replace(
        model=dataclasses.replace(settings.model, layers=2, scan_layers=False), data=DATA
    )
    folder = tiny_run.save(tmp_path_factory.mktemp("open"), settings)
    params = weights.load(folder)
    params["memory"]["layers"]["beta_bias"] += 2.0
    params["backbone"]["wte"] += np.random.default_rng(0).standard_normal(
        params["backbone"]["wte"].shape
    )
    weights.save(folder, params)
    return rmt_jax.load(folder)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("task", ("qa1", "qa5"))
def test_labels_say_what_stands_where(task, index):
    words = tiny_run.words()
    options = StoryOptions((2, 5), ("people", "places", "objects"), question_rate=1.0)
    made = Composer(DATA, words, segment_tokens=LENGTH).sample(
        task, "6s", 0, index, options, question_share=0.5
    )
    label = gate_labels.place_labels(made, words)
    parts = {kind: [] for kind in range(3)}
    for kind, group in itertools.groupby(range(len(label)), key=label.__getitem__):
        parts[kind].append(words.decode([int(made.context[i]) for i in group]).strip())
    facts, asked = " ".join(parts[FACT]), " ".join(parts[QUESTION])
    assert facts.split() == " ".join(made.story.facts).split()
    asks = [ask for ask in made.story.intermediate_questions if ask.question in asked]
    assert len(made.context_questions) == asked.count("?") and (asks or not made.context_questions)
    assert "?" not in facts and asked.count("?") == asked.count("<answer>")
    assert (label == BACKGROUND).sum() > 50


def test_segments_are_labelled_and_drawn_again_the_same(model):
    one, two = (list(itertools.islice(labelled(model), 4)) for _ in "ab")
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    other = next(labelled(model, seed=1))
    assert not np.array_equal(one[0].tokens, other.tokens)
    label = np.concatenate([batch.label for batch in one])
    assert one[0].tokens.shape == (GATES.batch, LENGTH)
    shares = [(label == kind).mean() for kind in range(4)]
    assert shares[BACKGROUND] > 0.3 and min(shares) > 0.01
    price = np.concatenate([batch.price for batch in one])
    for kind, cost in ((BACKGROUND, 1.0), (QUESTION, np.float32(0.3)), (PADDING, 0.0)):
        assert (price[label == kind] == cost).all()
    # The two facts of a short story count for more, token by token, than those of a long one.
    facts = price[label == FACT]
    assert facts.min() >= GATES.price_fact and facts.max() > 2 * facts.min()
    padded = label == PADDING  # behind the text alone
    assert (padded[:, 1:] >= padded[:, :-1]).all() and not padded[:, 0].any()


@pytest.mark.parametrize("empty", (True, pytest.param(False, marks=pytest.mark.slow)))
def test_openings_are_what_a_step_does(model, empty, monkeypatch):
    batch = next(labelled(model))
    some = gate_labels.LabelledSegments(*(part[:1] for part in batch))
    segment = Segment(some.tokens, some.label != PADDING)
    prompt = Prompt(some.prompt, some.prompt_mask, np.zeros(1, np.int32))
    cell = models.merge(model.graph, model.params)
    memory = cell.initial(1)
    if not empty:
        memory = cell.step(memory, Segment(batch.tokens[1:2], segment.mask | True), prompt)[1]
    used, gates = [], delta._gates
    monkeypatch.setattr(delta, "_gates", lambda *seen: used.append(gates(*seen)) or used[-1])
    cell.step(memory, segment, prompt)
    given = cell.memory.gate_inputs(cell, memory, segment, prompt, 2)[1]
    found = jnp.where(segment.mask, delta.gate(jnp.stack(given)[:, 0]), 0)
    np.testing.assert_allclose(found, np.stack(used)[:2, 0, :, 0], atol=1e-5)
    shown = model.inspect_segment(memory, segment, prompt)
    np.testing.assert_allclose(shown.values, found, atol=1e-5)
    reached = cell.memory.gate_inputs(cell, memory, segment, prompt, 2)[0]
    assert len(reached) == 1 and reached[0].shape[1] == prompt.tokens.shape[1] + LENGTH


def test_gates_learn_where_the_facts_stand_and_nothing_else_changes(model, tmp_path, capsys):
    out = tmp_path / "taught"
    cli.log_to_stderr()
    few = dataclasses.replace(GATES, steps=80)
    gate_training.teach(model, DATA, few, out, threshold=0.3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    before, after = rows[0], rows[-1]
    assert after["step"] == 80 and min(before["background"]) > 100
    # The first layer's gates see single words; the second's, what a taught layer makes of them.
    left = after["background"][1] / before["background"][1]
    kept = after["fact"][1] / before["fact"][1]
    assert left < 0.7 and kept > 1.3 * left, (left, kept)
    assert "teaching the gates of 2 of 2 layers" in capsys.readouterr().err
    taught = rmt_jax.load(out)
    assert taught.config.model.gate_threshold == (0.3,)
    same = dataclasses.replace(taught.config.model, gate_threshold=())
    assert taught.config.replace(model=same) == model.config  # not what it was taught on
    old, new = (weights.flatten(jax.tree.map(np.asarray, m.params)) for m in (model, taught))
    for name, value in old.items():
        if name.startswith("backbone/blocks"):
            assert np.array_equal(value[1], new[name][1]), name  # the last layer's block
        elif "beta" not in name:
            assert np.array_equal(value, new[name]), name


def test_what_is_shut_already_needs_no_teaching(model, tmp_path, capsys):
    shut = jax.tree.map(np.array, model.params)
    shut["memory"]["layers"]["beta_bias"] -= 100.0
    weights.save(tmp_path / "run", shut)
    tiny_run.words().save(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(model.config)))
    argv = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--gates.steps=2"]
    argv += ["--gates.checked_segments=64"]
    with pytest.raises(SystemExit) as stop:
        cli.run(gating.main, argv)
    assert stop.value.code == 2 and "there is nothing to teach" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_field_that_there_is_not_is_refused(tmp_path, capsys):
    for argument, sentence in (
        ("--gates.hold_on=2", "Did you mean"),
        ("--gates.price_fact=-1", "config.gates.price_fact must be 0 or more, but got -1"),
        ("--steps=2", "Unknown argument '--steps=2'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.run(gating.main, ["--workdir", "x", "--out", str(tmp_path / "out"), argument])
        assert stop.value.code == 2 and sentence in capsys.readouterr().err, argument


def test_a_memory_without_gates_is_refused(tmp_path, capsys):
    run = tiny_run.save(tmp_path / "run", tiny_run.config("rmt"))
    with pytest.raises(SystemExit) as stop:
        cli.run(gating.main, ["--workdir", str(run), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "'rmt' has no gates to teach" in capsys.readouterr().err


@pytest.mark.parametrize("priced", (False, True))
def test_a_fitted_gate_is_the_best_one(priced):
    """SciPy's minimiser of the same sum finds no better weights, and about the same ones."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 4)) * [1, 30, 0.01, 5] + [0, 100, 3, -2]
    given = features @ [1, -0.02, 20, 0.1] - 58.5
    is_fact = rng.uniform(size=400) < 1 / (1 + np.exp(-given))
    price = rng.uniform(1, 9, 400) if priced else np.ones(400)
    mean, spread = features.mean(axis=0), features.std(axis=0)

    def cost(gate):
        said = features @ gate[:-1] + gate[-1]
        errors = np.logaddexp(0, np.where(is_fact, -said, said)) * price / price.mean()
        return errors.sum() + gate_regression.RIDGE / 2 * np.square(gate[:-1] * spread).sum()

    weight, bias = gate_regression.fit(features, is_fact, price)
    found = np.append(weight, bias)
    scale = np.append(1 / spread, 1)  # in standardised numbers, or the minimiser is lost
    start = np.append(np.zeros(4), 0.0)

    def standardised(gate):
        own = gate[:-1] * scale[:-1]
        return cost(np.append(own, gate[-1] - own @ mean))

    best = scipy.optimize.minimize(standardised, start, tol=1e-12)
    assert cost(found) <= best.fun + 1e-6
    own = best.x[:-1] * scale[:-1]
    np.testing.assert_allclose(weight, own, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, best.x[-1] - own @ mean, rtol=1e-3)


def test_one_gate_for_all_layers_is_fitted_and_nothing_else_changes(tmp_path, capsys):
    trained = rmt_jax.load("multitask")  # its layers know facts, whatever its memory was
    sizes = dataclasses.replace(
        trained.config.model, cell="kv", gate_threshold=(), cell_options={"slots": 96}
    )
    backbone = jax.tree.map(np.asarray, trained.params["backbone"])
    gate = {"beta": np.zeros(sizes.width, np.float32), "beta_bias": np.float32(4)}
    run = tmp_path / "run"
    run.mkdir()
    weights.save(run, {"backbone": backbone, "memory": gate})
    tiny_run.words().save(run / "tokenizer")
    config = trained.config.replace(model=sizes)
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    old = rmt_jax.load(run)
    argv = ["--workdir", str(run), "--out", str(tmp_path / "out"), "--background", "builtin"]
    argv += ["--threshold", "0.2", "--gates.steps=6", "--gates.checked_segments=128"]
    cli.log_to_stderr()
    gating.main(argv)
    err = capsys.readouterr().err
    assert "fitting the gate of a token to 6 batches of segments" in err
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["background"] == rows[0]["fact"] == [1000.0]  # they stood open
    assert rows[1]["step"] == 6 and rows[1]["fact_tokens"] > 1000 < rows[1]["background_tokens"]
    (left,), (kept,) = rows[1]["background"], rows[1]["fact"]
    assert left < 100 and kept > 900, (left, kept)
    new = rmt_jax.load(tmp_path / "out")
    assert new.config.model.gate_threshold == (0.2,)
    before, after = (weights.flatten(jax.tree.map(np.asarray, m.params)) for m in (old, new))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"memory/beta", "memory/beta_bias"}

    # What reading keeps is what was measured.
    batch = next(labelled(new))
    segment = Segment(batch.tokens[:8], batch.label[:8] != PADDING)
    prompt = Prompt(batch.prompt[:8], batch.prompt_mask[:8], np.zeros(8, np.int32))
    cell = models.merge(new.graph, new.params)
    given = cell.memory.gate_inputs(cell, cell.initial(8), segment, prompt, 2)[1]
    opened = np.asarray(cell.memory.openings(given))[0] * segment.mask
    memory = cell.update_memory(cell.initial(8), segment, prompt)
    held = np.asarray(memory.state.gates[0])
    for text in range(8):
        np.testing.assert_allclose(
            held[text][held[text] > 0], opened[text][opened[text] > 0], atol=1e-5
        )
    shown = new.inspect_segment(
        new.initial_memory(1), *(jax.tree.map(lambda a: a[:1], part) for part in (segment, prompt))
    )
    np.testing.assert_allclose(shown.values, opened[:1], atol=1e-5)
