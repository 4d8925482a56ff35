"""Gates taught on a mesh: the weights of one device; and a model written without being whole."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny_run

from rmt_jax import api, convert, placement
from rmt_jax.config import Data, GateTraining, Mesh, to_dict
from rmt_jax.models.io import hub, lazy, weights
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import gates as gate_training
from rmt_jax.training.loop import save_weights

DATA = Data(tasks=("qa1", "qa5"), align="sentence")
GATES = GateTraining(steps=3, batch=16, checked_segments=32, warmup=1, texts_mixed=16)
MESHES = (Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two layers whose gates stand open."""
    settings = tiny_run.config("delta")
    sizes = dataclasses.replace(settings.model, layers=2, scan_layers=False)
    folder = tiny_run.save(
        tmp_path_factory.mktemp("open"), settings.replace(model=sizes, data=DATA)
    )
    params = weights.load(folder)
    params["memory"]["layers"]["beta_bias"] += 2.0
    weights.save(folder, params)
    return folder


def taught(run, out, mesh: Mesh | None):
    """The weights, and the last line that was measured."""
    source = hub.open_source(run)
    if mesh is not None:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"mesh": dataclasses.asdict(mesh)}))
        source = hub.open_source(run)
        found = placement.mesh_of_all(source.config)
        assert found is not None and found.shape["fsdp"] == mesh.fsdp
        model = api.from_source(source, mesh=found)
        table = model.params["backbone"]["wte"]
        assert table.addressable_data(0).size * mesh.fsdp * mesh.tensor == table.size
    else:
        model = api.from_source(source, everywhere=False)
    gate_training.teach(model, DATA, GATES, out)
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return weights.flatten(weights.load(out)), last


@functools.cache
def on_one_device(run, out):
    return taught(run, out, None)


@pytest.mark.parametrize(
    "mesh", (pytest.param(MESHES[0], marks=pytest.mark.slow), MESHES[1]), ids=str
)
def test_gates_are_taught_as_on_one_device(run, tmp_path, mesh):
    """Adam divides by the size of a gradient: where that is nothing but rounding (of the keys'
    biases), a weight goes the other way. All others are held to one device's."""
    wanted, as_told = on_one_device(run, run.with_name("one"))
    found, told = taught(run, tmp_path / "mesh", mesh)
    before = weights.flatten(weights.load(run))
    moved = np.concatenate([np.abs(wanted[n] - before[n]).ravel() for n in before])
    apart = np.concatenate([np.abs(wanted[n] - found[n]).ravel() for n in before])
    share = (apart[moved > 0] > 1e-3 * moved[moved > 0]).mean()
    print(f"{mesh}: {share:.2%} of the taught weights more than 0.1 % of their way apart")
    assert moved.max() > 1e-3 and share < 0.03
    assert told["cross_entropy"] == pytest.approx(as_told["cross_entropy"], rel=1e-4)
    assert told["background"] == pytest.approx(as_told["background"], rel=1e-3)
    # What was taught on a mesh is exported, and comes back.
    convert.export_weights(tmp_path / "mesh", tmp_path / "out")
    again = weights.flatten(hub.open_source(tmp_path / "out").params)
    assert found.keys() == again.keys()
    for name, value in found.items():
        assert np.array_equal(again[name], value), name


def test_a_gate_is_fitted_as_on_one_device(tmp_path):
    settings = tiny_run.config("kv")
    options = {"slots": 64, "gate_layer": 2}
    sizes = dataclasses.replace(settings.model, layers=2, cell_options=options)
    run = tiny_run.save(tmp_path / "run", settings.replace(model=sizes, data=DATA))
    wanted, as_fitted = taught(run, tmp_path / "one", None)
    found, fitted = taught(run, tmp_path / "mesh", MESHES[1])
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-2, atol=1e-3, err_msg=name)
    assert fitted["fact_tokens"] == as_fitted["fact_tokens"] > 100
    for kind in ("background", "fact"):
        assert fitted[kind] == pytest.approx(as_fitted[kind], rel=1e-3)
    assert not np.allclose(wanted["memory/beta"], 0)


def test_an_export_puts_nothing_on_a_device(run, tmp_path, monkeypatch):
    def refused(*_):
        raise AssertionError("weights on a device")

    monkeypatch.setattr(placement.Placement, "weights", refused)
    monkeypatch.setattr(lazy, "ROWS", 64)
    most, part = 0, lazy.LazyArray.part

    def noted(self, index):
        nonlocal most
        found = part(self, index)
        most = max(most, found.size)
        return found

    monkeypatch.setattr(lazy.LazyArray, "part", noted)
    convert.export_weights(run, tmp_path / "out")
    assert most <= 64
    monkeypatch.undo()
    before, after = (hub.open_source(one).flat for one in (run, tmp_path / "out"))
    for name, value in before.items():
        assert np.array_equal(np.asarray(after[name]), np.asarray(value)), name


def test_weights_come_to_the_host_some_rows_at_a_time(run, tmp_path, monkeypatch):
    source = hub.open_source(run)
    mesh = sharding.make_mesh(MESHES[0])
    model = api.from_source(source, mesh=mesh)
    monkeypatch.setattr(sharding, "MOST", 1024)
    came, here = [], sharding._on_this_host
    monkeypatch.setattr(sharding, "_on_this_host", lambda x: came.append(x.size) or here(x))
    save_weights(tmp_path / "out", model.params)
    assert max(came) == 1024 < model.params["backbone"]["wte"].size
    ours, theirs = (weights.load(one) for one in (run, tmp_path / "out"))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    assert to_dict(model.config) == to_dict(source.config)
