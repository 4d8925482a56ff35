"""Adapters against an independent implementation in PyTorch: values, gradients, PEFT's files."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_llama_torch import VOCAB, build

import rmt_jax
from rmt_jax import config as cfg
from rmt_jax import models
from rmt_jax.models import recurrence

torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
pytestmark = pytest.mark.torch
TUNED = cfg.Lora(rank=3, alpha=7.0)
TARGETS = {
    "llama": {"q_proj": "query", "v_proj": "value", "down_proj": "down"},
    "gpt2": {"c_attn": "qkv", "mlp.c_proj": "down"},
}


class Adapted(torch.nn.Module):
    """A linear map, torch's or GPT-2's Conv1D, with the product of two small ones beside it."""

    def __init__(self, base, inputs, outputs):
        super().__init__()
        self.base = base
        self.lora_A = torch.nn.Parameter(0.3 * torch.randn(TUNED.rank, inputs))
        self.lora_B = torch.nn.Parameter(0.3 * torch.randn(outputs, TUNED.rank))

    def forward(self, x):
        scale = TUNED.alpha / TUNED.rank
        return self.base(x) + scale * (x @ self.lora_A.T @ self.lora_B.T)


@pytest.mark.parametrize("family", TARGETS)
def test_adapters_as_torch_computes_them(family, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build(family, **({"n_inner": 64} if family == "gpt2" else {}))
    module.save_pretrained(tmp_path / "base")
    tensors, pairs = {}, {}
    for name, owner in list(module.named_modules()):
        target = next((t for t in TARGETS[family] if name.endswith(f".{t}")), None)
        if target is None:
            continue
        inputs, outputs = owner.weight.shape[:: -1 if family == "llama" else 1]
        adapted = Adapted(owner, inputs, outputs)
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, adapted)
        layer = int(name.split(".")[2])
        pairs.setdefault(TARGETS[family][target], {})[layer] = adapted
        for letter in "AB":
            value = getattr(adapted, f"lora_{letter}").detach().numpy().copy()
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = value
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 20))
    output = module(torch.tensor(ids), labels=torch.tensor(ids))
    output.loss.backward()

    # The same as a folder of PEFT's, put into the weights.
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA", "r": TUNED.rank, "lora_alpha": TUNED.alpha,
        "base_model_name_or_path": str(tmp_path / "base"),
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    wanted = output.logits.detach().numpy()
    near = 2e-5 * max(1, np.abs(wanted).max())
    found = rmt_jax.load(tmp_path).forward(ids)[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=near)

    # And beside them, with gradients.
    base = rmt_jax.load(tmp_path / "base")
    tuned = cfg.Lora(TUNED.rank, TUNED.alpha, tuple(TARGETS[family]))
    graph = models.outline(base.config.model, base.config.prompt, VOCAB, 1, tuned).static
    own = {
        name: {
            part: jnp.stack(
                [getattr(each[i], f"lora_{part.upper()}").detach().numpy().T for i in sorted(each)]
            )
            for part in "ab"
        }
        for name, each in pairs.items()
    }

    def loss(adapters):
        model = models.merge(graph, base.params | {"adapters": adapters})
        tokens = jnp.asarray(ids[:, None], jnp.int32)
        mask = jnp.ones((2, 1, 20), bool)
        logits, _ = recurrence.all_logits(model, model.initial(2), tokens, mask)
        scores = jax.nn.log_softmax(logits[:, 0, :-1])
        return -jnp.take_along_axis(scores, tokens[:, 0, 1:, None], axis=-1).mean(), logits[:, 0]

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(own)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=near)
    assert {n for n in pairs} == set(TARGETS[family].values())
    for name, each in pairs.items():
        for part in "ab":
            theirs = [getattr(each[i], f"lora_{part.upper()}").grad.numpy().T for i in sorted(each)]
            theirs = np.stack(theirs)
            close = 1e-4 * np.abs(theirs).max()
            np.testing.assert_allclose(grads[name][part], theirs, rtol=0, atol=close)
