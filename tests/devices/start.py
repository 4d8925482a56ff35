"""A run begins sharded: the numbers of one device, an eighth of the memory, nothing whole."""

import dataclasses

import jax
import numpy as np
import pytest
import test_shapes
import tiny
from test_start import as_before, config, eagerly, laid_out

from rmt_jax.config import Mesh
from rmt_jax.models.io import lazy, weights
from rmt_jax.training import step_costs

MESHES = [Mesh(), Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2)]
# Sizes that eight devices divide; Llama's shape.
OPTIONS = {"kv_heads": 4, "mlp_width": 64}
SIZES = {"width": 32, "heads": 4, "backbone_options": OPTIONS}


@pytest.mark.parametrize(
    "backbone, cell, train",
    [
        ("gpt2", "rmt", "all"),
        ("gpt2", "delta", "lora"),
        ("llama", "armt", "all"),
        ("gemma3", "none", "lora"),
        ("neox", "prmt", "all"),
    ],
)
def test_drawn_in_one_program_as_one_by_one(backbone, cell, train):
    tree = config(backbone, cell, train=train, tied_head=backbone != "neox")
    if backbone == "gemma3":
        options = {"global_layers": (1,)}
        tree = tree.replace(model=dataclasses.replace(tree.model, backbone_options=options))
    start = laid_out(tree, Mesh())
    found, wanted = weights.flatten(start.drawn()), eagerly(tree)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(found[name], value), name
        assert found[name].sharding == weights.flatten(start.place.params)[name]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("cell, train", (("rmt", "all"), ("delta", "lora")))
def test_drawn_as_on_one_device(mesh, cell, train):
    tree = config("llama", cell, train=train, **SIZES)
    start = laid_out(tree, mesh)
    found, wanted = weights.flatten(start.drawn()), eagerly(tree)
    for name, value in wanted.items():
        if name == "memory/tokens":  # scaled by a sum over the table, which is split
            np.testing.assert_allclose(found[name], value, rtol=1e-6)
        else:
            assert np.array_equal(found[name], value), name
        assert found[name].sharding == weights.flatten(start.place.params)[name]


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_loaded_as_on_one_device(tmp_path, mesh):
    path = folder(tmp_path / "model")
    tree = config("llama", "rmt", path, tied_head=False, **SIZES)
    found = weights.flatten(laid_out(tree, mesh).loaded())
    for name, value in as_before(tree, path).items():
        np.testing.assert_allclose(
            found[name], value, rtol=1e-6 if name == "memory/tokens" else 0, err_msg=name
        )


def folder(path):
    """Hugging Face's layout, in two files with an index."""
    made = test_shapes.folder(path, "llama", OPTIONS, False, **SIZES)
    tensors = weights.read_safetensors(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    table = {}
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        part = dict(list(tensors.items())[number::2])
        weights.write(made / file, part, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = made / "model.safetensors.index.json"
    index.write_text(test_shapes.json.dumps({"weight_map": table}))
    return made


def test_nothing_is_whole_anywhere(tmp_path, monkeypatch):
    """Of the compiled program each device gets an eighth; of the files no more than one layer's
    tensor is read at once, and each number once."""
    tree = config("llama", "none", folder(tmp_path / "model"), tied_head=False, **SIZES)
    tree = tree.replace(prompt=dataclasses.replace(tree.prompt, source="none"))
    start = laid_out(tree, Mesh(data=1, fsdp=8))
    shapes = weights.flatten(start.outline.shapes)
    planned, _, moments, _ = step_costs.state_bytes(tree, tiny.VOCAB, (1, 8, 1))
    places = weights.flatten(start.place.params)
    program = start.drawing(tuple(places), places).lower().compile()
    size = program.memory_analysis().output_size_in_bytes
    norms = sum(4 * x.size for n, x in shapes.items() if n.endswith("scale"))
    eighth = (sum(4 * x.size for x in shapes.values()) - norms) // 8 + norms
    assert planned == eighth and 0 <= size - planned < 1024  # beside them pointers of a tuple
    read = []
    part = lazy.LazyArray.part

    def noted(self, index):
        found = part(self, index)
        read.append(found.size)
        return found

    monkeypatch.setattr(lazy.LazyArray, "part", noted)
    monkeypatch.setattr(lazy, "equal", lambda a, b: False)  # of head and embedding, in pieces
    state = start.first()
    layer = max(x.size // (x.shape[0] if len(x.shape) > 2 else 1) for x in shapes.values())
    assert max(read) == layer
    for tree, wanted in ((state.params, planned), (state.opt, moments)):
        leaves = jax.tree.leaves(tree)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert 0 <= held - wanted <= 16  # the optimizer's counts
