"""How tokens are drawn: the distribution of Hugging Face's own processors, and draws from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.models import sampling
from rmt_jax.models.sampling import Sampling


@pytest.mark.torch
@pytest.mark.parametrize("temperature", (0.4, 1.0, 3.0))
@pytest.mark.parametrize(
    "top_k, top_p", ((0, 1.0), (5, 1.0), (0, 0.7), (8, 0.5), (1, 0.9), (99, 0.01))
)
def test_what_is_left_out_is_what_transformers_leaves_out(temperature, top_k, top_p):
    torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
    from transformers.generation import logits_process as theirs

    logits = np.random.default_rng(0).standard_normal((16, 50)).astype(np.float32) * 2
    wanted = theirs.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        wanted = theirs.TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = theirs.TopPLogitsWarper(top_p)(None, wanted)
    found = sampling.allowed(logits, Sampling(temperature, top_k, top_p).arrays())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)


def test_draws_have_the_probabilities_of_the_softmax():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05, 1e-9]]))
    draw = Sampling(top_p=0.9, seed=1).arrays()
    many = jnp.broadcast_to(logits, (20_000, 5))
    found = np.bincount(sampling.next_token(many, draw, 3), minlength=5) / 20_000
    np.testing.assert_allclose(found, np.array([0.5, 0.3, 0.15, 0, 0]) / 0.95, atol=0.015)


def test_each_step_draws_anew():
    logits, draw = jnp.zeros((4, 1000)), Sampling(seed=2).arrays()
    one, other = (sampling.next_token(logits, draw, step) for step in (0, 1))
    assert not np.array_equal(one, other) and len(set(np.asarray(one))) == 4
    assert np.array_equal(one, jax.jit(sampling.next_token)(logits, draw, 0))
