"""Our Triton kernels, run by Triton's interpreter on the CPU: values, gradients, and whole models.

The interpreter runs a kernel's program for program, with its masks and offsets, and needs no GPU;
what a GPU alone can show, `tests/gpu_check.py` does.
"""

import importlib
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec
from test_recurrence import ASKED, loss_of

from rmt_jax import models
from rmt_jax.models import diagonal, recurrence
from rmt_jax.models.ops import kernels
from rmt_jax.models.ops.positions import cast_fp32_grad, embedding_lookup
from rmt_jax.runtime import mesh as sharding


@pytest.fixture
def interpreted(monkeypatch):
    """Has the kernels serve everywhere, by the interpreter; gives the names of those that ran."""
    pytest.importorskip("triton", reason="the kernels need Triton, which is for Linux alone")
    torch = pytest.importorskip("torch", reason="Triton's interpreter is called with torch arrays")
    code = importlib.import_module("rmt_jax.models.ops.triton_kernels")
    ran, alone = set(), threading.Lock()

    def torched(x):
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(x))

    def back(x):
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    def call(name, arrays, out, grid, sizes):
        ran.add(name)
        kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}

        def run(*arrays):
            # What a kernel leaves out stays NaN.
            made = [
                torch.full(x.shape, float("nan"), dtype=kinds[jnp.dtype(x.dtype).name]) for x in out
            ]
            with alone:  # while the interpreter runs it has Triton's own functions replaced
                code.KERNELS[name][grid](*map(torched, map(np.asarray, arrays)), *made, **sizes)
            return [back(x) for x in made]

        return jax.pure_callback(run, list(out), *arrays)

    monkeypatch.setattr(kernels, "_compiler", lambda: SimpleNamespace(call=call))
    monkeypatch.setattr(kernels, "ready", lambda x: True)
    monkeypatch.setattr(kernels, "TILE", 64)  # several tiles a program, and ragged ones
    monkeypatch.setattr(kernels, "PROGRAMS", 4)
    return ran


PIECES = {
    "prenorm": ("prenorm", (3, 11, 12), (12,), (12,)),
    "add_layer_norm": ("add_layer_norm", (3, 11, 12), (3, 11, 12), (12,), (12,), (12,)),
    "bias_gelu": ("bias_gelu", (3, 11, 40), (40,)),
    "bias_gelu, wide": ("bias_gelu", (2, 3, 600), (600,)),
    "split_qkv": ("split_qkv", (3, 11, 36), (36,)),
    "one row": ("add_layer_norm", (1, 1, 16), (1, 1, 16), (16,), (16,), (16,)),
}


@pytest.mark.parametrize("layers", (0, 3))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", PIECES)
def test_a_kernel_gives_what_xla_gives(name, dtype, layers, interpreted, monkeypatch):
    """Values and gradients; also under vmap over stacked layers, each with vectors of its own."""
    operation, *shapes = PIECES[name]

    def piece(x, *vectors):
        return getattr(kernels.block_ops(x), operation)(x, *vectors)

    rng = np.random.default_rng(0)

    def drawn(shape, dtype):
        stacked = (layers, *shape) if layers else shape
        return jnp.asarray(rng.standard_normal(stacked), dtype)

    # Vectors are float32 whatever the model computes in.
    inputs = [drawn(s, dtype if len(s) > 1 else "float32") for s in shapes]
    run = jax.vmap(piece) if layers else piece
    out = jax.eval_shape(run, *inputs)
    weights = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), out)

    def results(inputs, weights):
        value, pull = jax.vjp(run, *inputs)
        return jax.tree.leaves((value, pull(weights)))

    ours = jax.jit(results)(inputs, weights)
    assert interpreted
    monkeypatch.setattr(kernels, "ready", lambda x: False)
    exact = [jax.tree.map(lambda x: x.astype(jnp.float32), part) for part in (inputs, weights)]
    plain = jax.jit(results)(*exact)
    least = 2e-6 if dtype == "float32" else 1e-2
    for a, b in zip(ours, plain, strict=True):
        assert np.isfinite(a).all()
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= least * np.linalg.norm(b), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell, scanned, schedule",
    (
        ("rmt", False, "sequential"),
        ("armt", True, "sequential"),
        ("armt", True, "diagonal"),
        ("delta", True, "sequential"),
    ),
)
def test_a_model_learns_the_same_with_them(cell, scanned, schedule, interpreted, monkeypatch):
    """Loss and gradients of all weights; what is not differentiated goes without the kernels."""
    monkeypatch.setattr(kernels, "TILE", 1024)  # the interpreter takes its time for each tile
    graph, params = tiny.model(ASKED, cell=cell, scan_layers=scanned)
    batch = tiny.batch(segments=3, answered=1)
    way = {"sequential": recurrence, "diagonal": diagonal}[schedule]

    def loss(params):
        model = models.merge(graph, params)
        return loss_of(way.answer_logits(model, batch, remat=False), batch)

    ours = jax.jit(jax.value_and_grad(loss))(params)
    every = {"normalise", "add_normalise", "normalise_gradient", "gelu_gradient", "join"}
    assert interpreted == every
    interpreted.clear()
    value = jax.jit(loss)(params)
    assert not interpreted
    monkeypatch.setattr(kernels, "ready", lambda x: False)
    plain = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, plain[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_they_serve_where_one_device_sees_the_whole_array(monkeypatch):
    x = jnp.zeros((kernels.LEAST, 8))
    assert not kernels.ready(x)  # a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not kernels.ready(x)  # no NVIDIA GPU behind it
    monkeypatch.setattr(kernels, "_compiler", object)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not kernels.ready(x)  # eight devices, and nothing says who has what
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert kernels.ready(x)
    assert not kernels.ready(x[1:])  # too few rows to be worth a launch
    assert not kernels.ready(jnp.zeros((kernels.LEAST, 8), jnp.int32))
    assert not kernels.ready(jnp.zeros((kernels.LEAST, kernels.WIDEST + 1)))

    def seen(data: int, fsdp: int) -> bool:
        mesh, found = sharding.planned((data, fsdp, 1)), []

        def look(x):
            found.append(kernels.ready(x))
            return x

        rows = PartitionSpec("data")
        split = jax.shard_map(
            look, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"data"}, check_vma=False
        )
        jax.eval_shape(jax.jit(split), jax.ShapeDtypeStruct((data * kernels.LEAST, 8), jnp.float32))
        return found[0]

    assert seen(8, 1)  # as the train step splits texts over `data`
    assert not seen(4, 2)  # the compiler would split `fsdp`, and can't split a kernel


def test_weights_cast_before_a_loop_learn_in_their_own_dtype():
    weight = jnp.float32(1 / 3)
    cast = weight.astype(jnp.bfloat16)

    def loss(weight):
        steps = jax.lax.scan(lambda s, x: (s + cast_fp32_grad(weight, cast) * x, None), 0.0, xs)
        return steps[0]

    xs = jnp.full(1000, 1 + 2**-7, jnp.bfloat16)  # a sum in bfloat16 would stop at 256
    assert cast_fp32_grad(weight, cast) == cast
    np.testing.assert_allclose(jax.grad(loss)(weight), 1000 * (1 + 2**-7), rtol=1e-6)


def test_a_table_that_all_look_at_learns_the_same_on_a_gpu(monkeypatch):
    table, index = jax.random.normal(jax.random.key(0), (7, 4)), jnp.array([[0, 3, 3], [6, 0, 3]])

    def results():
        return jax.value_and_grad(lambda x: jnp.sin(embedding_lookup(x, index)).sum())(table)

    plain = results()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(plain, results(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
