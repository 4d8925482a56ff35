"""A TPU's attention kernel, interpreted on a CPU, against plain products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.models import platform
from rmt_jax.models.ops import attention, splash

SLOW = pytest.mark.slow


def arrays(places, heads, groups, width, texts=2):
    rng = np.random.default_rng(0)
    sizes = ((heads, width), (groups, width), (groups, width))
    made = [rng.standard_normal((texts, places, *size)).astype(np.float32) for size in sizes]
    known = rng.random((texts, places)) < 0.8  # prompt and text end in padding, memory follows
    known[:, 0] = True
    return (*map(jnp.asarray, made), jnp.asarray(known))


@pytest.mark.parametrize(
    ("places", "heads", "groups", "width"),
    [
        (300, 4, 2, 64),  # grouped heads, places that fill no tile
        pytest.param(256, 2, 2, 128, marks=SLOW),
        pytest.param(1100, 2, 1, 64, marks=SLOW),  # more than stand in the chip's memory at once
    ],
)
def test_the_kernel_gives_plain_numbers_and_gradients(places, heads, groups, width):
    *inputs, known = arrays(places, heads, groups, width)
    visible = jnp.tril(jnp.ones((places, places), bool)) & known[:, None]

    def value(way):
        def loss(queries, keys, values):
            out = way(queries, keys, values)
            return jnp.where(known[:, :, None, None], jnp.sin(out), 0).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)

    (_, ours), grads = value(lambda q, k, v: splash.attend(q, k, v, known, interpret=True))
    (_, plain), expected = value(lambda q, k, v: attention.plain(q, k, v, visible))
    np.testing.assert_allclose(ours, plain, atol=2e-5)
    for got, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=5e-5)


def test_a_place_that_sees_nothing_gives_finite_numbers():
    *inputs, known = arrays(256, 1, 1, 64, texts=1)
    known = known.at[:, :40].set(False)
    out, back = jax.vjp(lambda *x: splash.attend(*x, known, interpret=True), *inputs)
    assert all(np.isfinite(x).all() for x in (out, *back(jnp.ones_like(out))))


def test_it_stands_where_a_tpu_is_compiled_for(monkeypatch):
    """From LEAST places on, causal, without a bias; and nowhere else."""
    calls = []
    monkeypatch.setattr(splash, "attend", lambda q, k, v, known: calls.append(q.shape) or q)
    with platform.compiling_for("tpu"):
        for places, causal, bias in ((400, True, None), (300, True, None), (400, False, None)):
            q, k, v, known = arrays(places, 2, 2, 64)
            visible = jnp.ones((2, places, places), bool)
            attention.attend(q, k, v, visible, bias, known if causal else None)
    assert calls == [(2, 400, 2, 64)]


def test_what_the_mesh_does_not_divide_stays_plain():
    """Texts over `data` and `fsdp`, heads over `tensor`; none by hand already."""
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    with platform.spread_over(mesh):
        assert splash.serves((4, 512, 4, 64), 2)
        assert not splash.serves((2, 512, 4, 64), 2)  # texts for half of the devices
        assert not splash.serves((4, 512, 4, 64), 1)  # one head of keys for two
    assert splash.serves((1, 512, 3, 64), 1) and not splash.serves((8, 128, 4, 64), 4)
