"""Our model of a folder against Hugging Face's module that was saved there."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rmt_jax
from rmt_jax import models
from rmt_jax.models import recurrence
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import names, weights

VOCAB, END = 37, 36


def check_logits_and_gradients(module: Any, folder: Path) -> None:
    """Logits to 2e-5, every gradient of the next-token loss to 1e-4 of its largest entry."""
    import torch

    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 20))
    tensor = torch.tensor(ids)
    output = module(tensor, labels=tensor)
    module.zero_grad()
    output.loss.backward()
    model = rmt_jax.load(folder)
    assert model.config.model.cell == "none"

    def loss(params):
        ours = models.merge(model.graph, params)
        tokens = jnp.asarray(ids[:, None], jnp.int32)
        logits, _ = recurrence.all_logits(ours, ours.initial(2), tokens, jnp.ones((2, 1, 20), bool))
        scores = jax.nn.log_softmax(logits[:, 0, :-1])
        return -jnp.take_along_axis(scores, tokens[:, 0, 1:, None], axis=-1).mean(), logits[:, 0]

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    np.testing.assert_allclose(logits, output.logits.detach().numpy(), rtol=0, atol=2e-5)
    flat = {name: np.asarray(g) for name, g in weights.flatten(grads).items()}
    backbone = BACKBONES[model.config.model.backbone]
    found = names.to_theirs(flat, backbone, CELLS["none"])
    found[backbone.hf.head_too] = found[backbone.hf.head]
    for name, parameter in module.named_parameters():
        wanted = parameter.grad.numpy()
        assert np.abs(found[name] - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


def check_greedy_continuation(module: Any, folder: Path, new_tokens: int) -> None:
    """The same ids, up to where the module stops."""
    import torch

    ids = np.random.default_rng(1).integers(0, END, (2, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = module.generate(
            torch.tensor(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=END
        )[:, 9:].numpy()
    found = rmt_jax.load(folder).generate(ids, max_new_tokens=new_tokens)
    assert wanted.shape[1] > 1 and np.array_equal(found[:, : wanted.shape[1]], wanted)
