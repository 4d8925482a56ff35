"""Against HF's GPT2LMHeadModel in PyTorch: logits, gradients, and weights both ways."""

import json
import warnings

import hf_parity
import numpy as np
import pytest
import tiny

import rmt_jax
from rmt_jax import convert
from rmt_jax.models.io import weights

torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random tiny GPT-2 and the folder it was saved to, in shards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=37,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
            bos_token_id=36, eos_token_id=36,
        )  # fmt: skip
        model = GPT2LMHeadModel(config).eval()
        folder = tmp_path_factory.mktemp("gpt2")
        model.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return model, folder


def test_logits_and_gradients(theirs):
    module, folder = theirs
    hf_parity.check_logits_and_gradients(module, folder)
    assert rmt_jax.load(folder).segment_tokens == 32


def test_their_greedy_continuation(theirs):
    module, folder = theirs
    hf_parity.check_greedy_continuation(module, folder, 6)


def test_what_is_exported_loads_there_bit_for_bit(theirs, tmp_path):
    module, folder = theirs
    convert.export_weights(folder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2LMHeadModel

        again = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_exported_rmt_backbone_loads_as_the_model_card_says(tmp_path):
    from safetensors.torch import load_file
    from transformers import GPT2Config, GPT2LMHeadModel

    from rmt_jax.config import Config, Prompt, to_dict

    config = Config(model=tiny.settings(), prompt=Prompt("none"))
    _, params = tiny.model()
    weights.save(tmp_path / "run", params)
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    convert.export_weights(tmp_path / "run", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(state["memory_cell.memory"].numpy(), params["memory"]["tokens"])
    prefix = "memory_cell.model."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = GPT2LMHeadModel(GPT2Config.from_pretrained(tmp_path / "out"))
    module.load_state_dict(state)
