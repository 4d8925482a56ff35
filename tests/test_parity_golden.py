"""Against what the authors' PyTorch code computed in float32: tests/golden (config.json there).

Tolerances: 2e-5 absolute on logits and memory, 1e-4 of its largest entry on each gradient, and the
same generated ids.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import rmt_jax
from rmt_jax import models
from rmt_jax.models import recurrence
from rmt_jax.models.backbones.gpt2 import GPT2
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import hub, names, torch_pickle, weights

pytestmark = pytest.mark.portable

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 12


def folded(ids):
    """i32[B, n] -> tokens, mask [B, S, L]."""
    rest = -ids.shape[1] % LENGTH
    tokens = np.pad(ids.astype(np.int32), ((0, 0), (0, rest)))
    mask = np.broadcast_to(np.arange(tokens.shape[1]) < ids.shape[1], tokens.shape)
    return (x.reshape(len(ids), -1, LENGTH) for x in (tokens, mask))


@pytest.mark.parametrize("kind", ("rmt", "armt"))
def test_values_gradients_memory_and_continuations(kind, caplog):
    expected = load_file(GOLDEN / kind / "expected.safetensors")
    ids, places = expected["input_ids"], expected["input_ids"].shape[1]
    model = rmt_jax.load(GOLDEN / kind)
    tokens, mask = folded(ids)

    def loss(params):
        """The authors' mask is shifted with the logits, not with the labels."""
        model_ = models.merge(model.graph, params)
        logits, _ = recurrence.all_logits(model_, model_.initial(2), tokens, mask)
        logits = logits.reshape(2, -1, logits.shape[-1])[:, :places]
        scores = jax.nn.log_softmax(logits[:, :-1])
        picked = jnp.take_along_axis(scores, jnp.asarray(ids[:, 1:, None]), axis=-1)[..., 0]
        counted = expected["labels_mask"][:, :-1]
        return -(picked * counted).sum() / counted.sum(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(value, expected["loss"][0], rtol=1e-5)

    flat = {name: np.asarray(g) for name, g in weights.flatten(grads).items()}
    theirs = names.to_theirs(flat, GPT2, CELLS[kind])
    for name, wanted in expected.items():
        if name.startswith("grad/"):
            found = theirs[name.removeprefix("grad/")]
            assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max(), name

    memory = model.initial_memory(2)
    for s in range(4):
        memory = model.read(memory, tokens[:, s], mask[:, s])
        if kind == "rmt":
            np.testing.assert_allclose(memory.state, expected[f"memory/{s}"], rtol=0, atol=2e-5)
        else:
            for layer, (matrix, norm) in enumerate(zip(*memory.state, strict=True)):
                a, z = (expected[f"memory/{s}/layer{layer}/{x}"] for x in "Az")
                # Sums over all segments, up to 10: one core's rounding is another's last digits.
                np.testing.assert_allclose(matrix, a, rtol=1e-5, atol=2e-5)
                np.testing.assert_allclose(norm, z, rtol=1e-5, atol=2e-5)

    assert np.array_equal(model.generate(ids[:, :-2], max_new_tokens=5), expected["generated"])
    assert ("nu 3" in caplog.text) == (kind == "armt")  # what had to be guessed


def test_the_old_save_in_bfloat16_with_buffers(tmp_path):
    file = GOLDEN / "rmt" / "pytorch_model_bf16_with_buffers.bin"
    (tmp_path / "pytorch_model.bin").write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_bytes((GOLDEN / "rmt" / "config.json").read_bytes())
    opened = hub.open_source(tmp_path)
    assert opened.config.model.tied_head  # stored apart, but the same numbers
    found = weights.flatten(opened.params)
    assert {str(v.dtype) for v in found.values()} == {"bfloat16"}
    exact = hub.open_source(GOLDEN / "rmt").params
    for name, value in weights.flatten(exact).items():
        assert np.array_equal(found[name], value.astype(found[name].dtype)), name


def test_a_head_of_its_own_is_kept():
    theirs = torch_pickle.read(GOLDEN / "rmt" / "pytorch_model.bin")
    head = theirs["memory_cell.model.lm_head.weight"] + 1
    flat = names.to_ours(theirs | {"memory_cell.model.lm_head.weight": head}, GPT2, "rmt")
    assert np.array_equal(flat["backbone/head"], head)
    config, _ = hub.infer("gpt2", flat, {"n_head": 4, "segment_size": 12}, "rmt")
    assert not config.model.tied_head
    hub.fit(config, weights.unflatten(flat), "rmt")
