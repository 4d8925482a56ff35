"""A model read with on a mesh: the numbers of one device, and no device waits for another."""

import dataclasses
import functools
import re
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from rmt_jax import api, config, evaluation, models, placement
from rmt_jax.config import Mesh
from rmt_jax.evaluation import answering, likelihood
from rmt_jax.models import pipeline, recurrence, schedule
from rmt_jax.models.io import weights
from rmt_jax.models.sampling import Sampling
from rmt_jax.runtime import mesh as sharding
from rmt_jax.types import Prompt

MESHES = [Mesh(), Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2)]


@functools.cache
def model(cell: str, mesh: Mesh | None = None) -> api.Model:
    asked = config.Prompt("description", "every", tiny.WORDS)
    settings = config.Config(model=tiny.settings(cell=cell), prompt=asked)
    params = tiny.model(asked, cell=cell)[1]
    return api.Model(settings, params, mesh=mesh and sharding.make_mesh(mesh))


def texts(count: int) -> tuple[np.ndarray, np.ndarray, Prompt]:
    """Of 1 to 3 segments and a part, with a prompt each."""
    rng = np.random.default_rng(count)
    lengths = rng.integers(9, 30, count)
    tokens = rng.integers(0, tiny.VOCAB, (count, 30)).astype(np.int32)
    words = rng.integers(0, tiny.VOCAB, (count, tiny.WORDS)).astype(np.int32)
    prompt = Prompt(words, np.ones(words.shape, bool), np.zeros(count, np.int32))
    return tokens, np.arange(30) < lengths[:, None], prompt


def numbers(one: api.Model, count: int) -> list:
    """All that it computes of so many texts."""
    tokens, mask, prompt = texts(count)
    logits, memory = one.forward(tokens, mask, prompt)
    whole = tokens[:, :24].reshape(count, 3, 8)
    again = one.read(one.read(one.initial_memory(count), whole, None, prompt), whole, None, prompt)
    taken = answering.memory_rows(one, again, [0] * 8)  # one text for eight questions
    tail = np.resize(tokens, (8, 5))
    made = [one.generate(tokens, 4, mask, prompt), one.generate_from(taken, tail, end=())]
    drawn = one.generate(tokens, 4, mask, prompt, sampling=Sampling(temperature=2.0, seed=3))
    made += [drawn, *one.stream(taken, tail, max_new_tokens=3, end=())]
    scored = likelihood.score_texts(one, list(tokens), batch=count)
    return [made, (logits, memory, again, [part.logprob for part in scored])]


@pytest.mark.parametrize(
    "cell, mesh, count",
    (
        ("delta", MESHES[0], 8),
        ("delta", MESHES[0], 3),  # the devices do not divide the texts: two have a layer each
        pytest.param("rmt", MESHES[0], 1, marks=pytest.mark.slow),  # one device reads it
        pytest.param("delta", MESHES[1], 3, marks=pytest.mark.slow),
        ("delta", MESHES[2], 8),
        ("kv", MESHES[0], 3),
        pytest.param("kv", MESHES[2], 8, marks=pytest.mark.slow),
        pytest.param("rmt", MESHES[2], 8, marks=pytest.mark.slow),
    ),
    ids=str,
)
def test_numbers_are_those_of_one_device(cell, mesh, count):
    """Of cells with memory tokens, and with a state that has the layers first."""
    (made, found), (as_made, wanted) = (numbers(m, count) for m in (model(cell, mesh), model(cell)))
    for a, b in zip(made, as_made, strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_weights_are_split_as_in_training():
    params = weights.flatten(model("delta", MESHES[1]).params)
    for name, axis in (("backbone/wte", 1), ("backbone/blocks/up/kernel", 1)):
        part = params[name].addressable_data(0)
        assert part.shape[axis] * 8 == params[name].shape[axis], name
    assert model("delta", MESHES[1]).ways == model("delta").ways * 8 == 8
    assert model("delta", MESHES[2]).ways == 4  # two devices along `tensor` share their texts


def test_no_device_waits_for_another():
    """Along `data` alone a program holds no message between devices, though a loop in it ends when
    all its texts have, and closed gates are passed by where all are."""
    one = model("delta", MESHES[0])
    tokens, _, prompt = texts(8)
    whole = tokens[:, :24].reshape(8, 3, 8)
    run = one.placement.bound(schedule.read_some)
    program = jax.jit(functools.partial(one.placement.by_hand, run))
    inputs = (one.initial_memory(8), whole, np.ones(whole.shape, bool), prompt, np.int32(3))
    text = program.lower(one.params, *inputs).compile().as_text() or ""
    assert "while" in text
    assert not any(
        word in text for word in ("all-reduce", "all-gather", "collective", "all-to-all")
    )


@pytest.mark.parametrize(
    "cell, scanned, devices",
    (
        ("delta", False, 2),
        ("delta", True, 2),
        pytest.param("armt", False, 8, marks=pytest.mark.slow),
        ("prmt", False, 3),
    ),
)
def test_layers_of_one_text_are_shared(cell, scanned, devices):
    """Each device holds the memory of its own layers, the same bits as one device's, and hears of
    one other device, once a segment. As many take part as divide the six layers."""
    changes = {"cell": cell, "layers": 6, "scan_layers": scanned}
    prompt = config.Prompt("none", "every", tiny.WORDS)
    settings = config.Config(model=tiny.settings(**changes), prompt=prompt)
    params = tiny.model(prompt, **changes)[1]
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
    alone, shared = (api.Model(settings, params, mesh=m) for m in (None, mesh))
    tokens, mask, _ = texts(1)
    long, known = np.tile(tokens[:, :24], 12), np.tile(mask[:, :24], 12)  # more than one block
    wanted, found = (m.read(m.initial_memory(1), long, known) for m in (alone, shared))
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    for state in jax.tree.leaves(found.state):
        held = [len(shard.data) for shard in state.addressable_shards]
        assert held == {2: [3, 3], 3: [2, 2, 2], 8: [1] * 6}[devices]

    run = shared.placement.bound(functools.partial(pipeline.read_some, axis=placement.LAYERS))
    blocks = (long.reshape(1, -1, 8), known.reshape(1, -1, 8), None, np.int32(3))
    given = (shared.params, shared.initial_memory(1), *blocks)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
    program = jax.jit(functools.partial(shared.placement.sharing_layers, run)).lower(*shapes)
    text = program.compile().as_text() or ""
    assert len(re.findall(r" = .* collective-permute\(", text)) == 1
    assert not any(word in text for word in ("all-reduce(", "all-gather(", "all-to-all("))


def test_threads_that_share_layers_wait_for_each_other():
    """Two texts, of two threads of the user's, on the same devices."""
    one = model("delta", MESHES[0])
    tokens, mask, prompt = texts(1)
    whole, known = np.tile(tokens[:, :24], 9), np.tile(mask[:, :24], 9)

    def read(_: int) -> np.ndarray:
        memory = one.read(one.initial_memory(1), whole, known, prompt)
        return np.asarray(jax.tree.leaves(memory.state)[0])

    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(12), timeout=120))
    assert all(np.array_equal(found[0], other) for other in found)


def test_an_evaluation_is_that_of_one_device():
    both = [
        evaluation.evaluate(
            api.load("multitask", everywhere=everywhere), tasks=["qa1", "qa5"], lengths=["2s"],
            samples=12, batch=10, progress=False,
        )
        for everywhere in (False, True)
    ]  # fmt: skip
    alone, spread = ([dataclasses.replace(r, seconds=0.0) for r in found] for found in both)
    assert alone == spread and alone[0].samples == 12


@pytest.mark.parametrize("cell", tiny.CELLS)
def test_weights_cast_before_the_loop_read_the_same(cell):
    """Reading without gradient casts them once; to the bit what a loop that casts them gives."""
    asked = config.Prompt("question", "start", tiny.WORDS)
    graph, params = tiny.model(asked, cell=cell, dtype="bfloat16", conv_width=2)
    model, (tokens, mask) = models.merge(graph, params), tiny.text()
    memory, prompt = model.initial(len(tokens)), tiny.prompt()
    count = jnp.int32(tokens.shape[1])
    once = recurrence.read_some(model, memory, tokens, mask, prompt, count)
    each = recurrence.read(model, memory, tokens, mask, prompt)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(each), strict=True):
        np.testing.assert_array_equal(a, b)
    kinds = {
        jax.tree_util.keystr(path): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            nnx.split(recurrence.stop_gradient_params(model))[1]
        )
    }
    assert {str(d) for d in kinds.values()} == {"bfloat16", "float32"}
    exact = [name for name, kind in kinds.items() if kind == jnp.float32]
    assert all(any(part in name for part in ("ln_", "beta", "memory")) for name in exact), exact
