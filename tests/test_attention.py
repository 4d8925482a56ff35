"""Attention by backend: the choice, and that every way gives the einsum's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rmt_jax import doctor, models
from rmt_jax.models.ops import attention


def arrays(dtype=jnp.float32, batch=2, places=10, heads=2, width=8):
    """Queries, keys, values, and keys known but for holes in the middle, as real inputs have."""
    rng = np.random.default_rng(0)
    shape = (3, batch, places, heads, width)
    known = np.ones((batch, places), bool)
    known[0, 3:5] = known[1, 6:] = False
    return *jnp.asarray(rng.standard_normal(shape), dtype), jnp.asarray(known)


def einsum(queries, keys, values, known):
    places = queries.shape[1]
    visible = jnp.tril(jnp.ones((places, places), bool)) & known[:, None]
    return attention.attend(queries, keys, values, visible)  # without `known`: always the einsum


def test_the_choice():
    def chosen(platform="gpu", capability="9.0", dtype=jnp.bfloat16, width=64, n=592, **changes):
        values = {"causal": True, "biased": False} | changes
        return attention.chosen(platform, capability, dtype, (8, n, 12, width), **values)

    assert chosen() == chosen(capability="8.0") == chosen(dtype=jnp.float16) == "cudnn"
    assert chosen(capability="12.0") == "cudnn"
    assert chosen(platform="tpu", capability="") == "splash"
    assert chosen(width=120, capability="8.6") == chosen(width=128) == "cudnn"
    for refused in (
        {"platform": "cpu", "capability": ""},
        {"platform": "tpu", "capability": "", "n": 96},  # stays in the chip's own memory
        {"platform": "tpu", "capability": "", "biased": True},
        {"capability": "7.5"},  # Turing: no fused kernel
        {"capability": "gfx90a"},  # AMD
        {"dtype": jnp.float32},
        {"width": 20},
        {"width": 128, "capability": "8.0"},  # 128 and the columns of the mask are more than 128
        {"width": 256},
        {"n": 65},
        {"n": 1, "causal": False},  # decoding
        {"biased": True},  # ALiBi
    ):
        assert chosen(**refused) == "xla", refused


def test_the_fused_form_gives_the_einsums_numbers():
    queries, keys, values, known = arrays()

    def value(way):
        def loss(queries, keys, values):
            out = way(queries, keys, values, known)
            return jnp.where(known[:, :, None, None], jnp.sin(out), 0).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(queries, keys, values)

    def fused(*inputs):
        return attention.causal(*inputs, "xla")

    (_, ours), gradients = value(fused)
    (_, out), expected = value(einsum)
    seen = np.asarray(known)  # what padding itself sees is nobody's business, if it is a number
    np.testing.assert_allclose(ours[seen], out[seen], atol=2e-6)
    assert np.isfinite(ours).all()
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("biased", [False, True])
def test_blocks_of_queries_give_the_whole(biased):
    places = 2 * attention.BLOCK + 57
    *inputs, known = arrays(places=places)
    visible = jnp.tril(jnp.ones((places, places), bool)) & known[:, None]
    bias = None
    if biased:
        at = jnp.broadcast_to(jnp.arange(places), (2, places))
        bias = attention.alibi(2, at, at, jnp.ones((places, places), bool))

    def run(form):
        return lambda *a: jnp.square(form(*a, visible, bias) * known[:, :, None, None]).sum()

    whole = jax.value_and_grad(run(attention.plain), argnums=(0, 1, 2))(*inputs)
    blocks = jax.value_and_grad(run(attention.in_blocks), argnums=(0, 1, 2))(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, blocks)


def test_cudnn_takes_what_we_give_it(monkeypatch):
    """JAX's own checks and the lowering for CUDA, forward and backward, also with
    stacked layers (the diagonal schedule's vmap); running it takes a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda least: float(least) <= 8.0)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    queries, keys, values, known = arrays(jnp.bfloat16, width=64)

    def loss(queries, keys, values, known=known):
        out = attention.causal(queries, keys, values, known, "cudnn")
        return jnp.sin(out.astype(jnp.float32)).sum()

    def layers(*stacked):
        return jax.vmap(jax.grad(loss, (0, 1, 2)))(*stacked)

    def packed(*inputs):
        return loss(*inputs, known=None)

    for function, inputs in (
        (jax.grad(loss, (0, 1, 2)), (queries, keys, values)),
        (jax.grad(packed, (0, 1, 2)), (queries, keys, values)),
        (layers, [jnp.stack([x] * 3) for x in (queries, keys, values)]),
    ):
        text = jax.jit(function).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
        assert "CAUSAL" in text and "fmhaScaleBias" not in text


@pytest.mark.parametrize("broken", (False, True))
def test_doctor_compares_the_kernel_with_the_einsum(monkeypatch, capsys, broken):
    def fused(queries, keys, values, known, _):
        out = causal(queries, keys, values, known, "xla")
        return out * (1.5 if broken else 1)

    causal = attention.causal
    monkeypatch.setattr(attention, "available", lambda *_, **__: "cudnn")
    monkeypatch.setattr(attention, "causal", fused)
    report = doctor.Report()
    doctor.attend(report)
    assert bool(report.problems) == broken
    assert ("model.attention=xla" in capsys.readouterr().out) == broken


def test_the_way_out():
    """`model.attention=xla` never asks for the kernel."""
    for how, asked in (("auto", True), ("xla", False)):
        model = models.merge(*tiny.model(attention=how))
        assert model.backbone.blocks.fused is asked
