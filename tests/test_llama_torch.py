"""The Llama family, Gemma 3 and GPT-NeoX against Hugging Face's models in PyTorch: logits,
gradients, greedy ids, weights both ways; RMT and ARMT around Llama."""

import json
import warnings

import hf_parity
import numpy as np
import pytest

import rmt_jax
from rmt_jax import convert
from rmt_jax.models.io import weights

torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
pytestmark = pytest.mark.torch

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 0.3,
    "high_freq_factor": 2.0, "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILY = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 8, "num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": 64, "head_dim": 6}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma3": ("gemma3_text", {
        "head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 64, "num_hidden_layers": 3,
        "pad_token_id": None,  # torch gives the padding's row no gradient
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    }),
    "pythia": ("gpt_neox", {"hidden_size": 32}),
    "neox in a row": ("gpt_neox", {
        "use_parallel_residual": False, "hidden_act": "gelu_fast", "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0
        },
    }),
}  # fmt: skip
VOCAB = hf_parity.VOCAB


@pytest.fixture(scope="module", params=FAMILY)
def theirs(request, tmp_path_factory):
    """A random tiny model of the family, and the folder it was saved to in shards."""
    kind, changes = FAMILY[request.param]
    module = build(kind, **changes)
    folder = tmp_path_factory.mktemp(request.param)
    module.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return module, folder


def build(kind, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        sizes = dict(
            num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24, max_position_embeddings=64, vocab_size=VOCAB,
            initializer_range=0.3, bos_token_id=36, eos_token_id=36,
        )  # fmt: skip
        config = AutoConfig.for_model(kind, **(sizes | changes))
        module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():  # no norm of ones, no bias of zeros
            for name, parameter in module.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_logits_and_gradients(theirs):
    module, folder = theirs
    hf_parity.check_logits_and_gradients(module, folder)
    assert rmt_jax.load(folder).segment_tokens == 64


def test_their_greedy_continuation(theirs):
    module, folder = theirs
    hf_parity.check_greedy_continuation(module, folder, 12)


def test_what_is_exported_loads_there_and_computes_the_same(theirs, tmp_path):
    module, folder = theirs
    convert.export_weights(folder, tmp_path / "out")
    ids = torch.tensor(np.random.default_rng(2).integers(0, VOCAB, (2, 20)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        again = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        ).eval()
    assert type(again) is type(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(module(ids).logits, again(ids).logits)


def test_rope_as_transformers_4_says_it(tmp_path):
    """`rope_theta` and `rope_scaling`, where transformers 5 has `rope_parameters`."""
    module = build("llama", rope_parameters=LLAMA3)
    module.save_pretrained(tmp_path)
    new = rmt_jax.load(tmp_path).config
    said = json.loads((tmp_path / "config.json").read_text())
    scaling = said.pop("rope_parameters")
    said["rope_theta"] = scaling.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(said | {"rope_scaling": scaling}))
    assert rmt_jax.load(tmp_path).config == new
    assert new.model.backbone_options["rope_scaling"] == "llama3"


def test_rmt_as_the_authors_wrap_it(tmp_path):
    """Memory tokens before and after the text in embedding space, plain positions; what the final
    norm makes of those behind stands before the next segment. A loop around HF's own model."""
    module, tokens = build("llama"), 3
    memory = 0.5 * torch.randn(tokens, 16)
    state = {f"memory_cell.model.{n}": v for n, v in module.state_dict().items()}
    state = {n: v.numpy() for n, v in (state | {"memory_cell.memory": memory}).items()}
    weights.write(tmp_path / "model.safetensors", state, {})
    said = module.config.to_dict() | {"num_mem_tokens": tokens, "segment_size": 10}
    (tmp_path / "config.json").write_text(json.dumps(said))

    ids = np.random.default_rng(3).integers(0, VOCAB, (2, 40))
    held, wanted = memory.expand(2, -1, -1), []
    with torch.no_grad():
        for segment in torch.tensor(ids).split(10, dim=1):
            embedded = module.get_input_embeddings()(segment)
            inputs = torch.cat([held, embedded, held], dim=1)
            output = module(inputs_embeds=inputs, output_hidden_states=True)
            held = output.hidden_states[-1][:, -tokens:]
            wanted.append(output.logits[:, tokens:-tokens])

    model = rmt_jax.load(tmp_path)
    m = model.config.model
    assert (m.cell, m.memory_tokens, m.segment_tokens) == ("rmt", tokens, 10)
    logits, found = model.forward(ids)
    np.testing.assert_allclose(logits, torch.cat(wanted, dim=1).numpy(), rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.state, held.numpy(), rtol=0, atol=5e-5)


def test_armt_as_the_authors_wrap_it(tmp_path):
    """Associations around each layer, memory tokens behind the text: hooks on HF's own layers."""
    module, tokens, keys, nu = build("llama"), 3, 8, 3
    memory = 0.5 * torch.randn(tokens, 16)
    maps = [
        {"W_mq": torch.randn(keys, 16), "W_mk": torch.randn(keys, 16),
         "W_mv": 0.3 * torch.randn(16, 16), "W_mb": torch.randn(1, 16), "bias": torch.randn(1)}
        for _ in module.model.layers
    ]  # fmt: skip
    state = {"memory_cell.memory": memory}
    for name, value in module.state_dict().items():
        wrapped = name.replace("self_attn", "layer.self_attn").replace("mlp.", "layer.mlp.")
        wrapped = wrapped.replace("input_lay", "layer.input_lay").replace("post_", "layer.post_")
        state[f"memory_cell.model.{wrapped}"] = value
    for number, own in enumerate(maps):
        for name, value in own.items():
            name = "W_mb.bias" if name == "bias" else f"{name}.weight"
            state[f"memory_cell.model.model.layers.{number}.{name}"] = value
    state = {n: np.ascontiguousarray(v.numpy()) for n, v in state.items()}
    weights.write(tmp_path / "model.safetensors", state, {})
    said = module.config.to_dict() | {"num_mem_tokens": tokens, "segment_size": 10, "nu": nu}
    (tmp_path / "config.json").write_text(json.dumps(said))

    def features(x):
        both = torch.cat([x.relu(), (-x).relu()], dim=-1)
        return torch.cat([both * both.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)

    held = [(torch.zeros(2, 2 * keys * nu, 16), torch.zeros(2, 2 * keys * nu)) for _ in maps]
    first = True

    def recall(number, key):
        matrix, norm = held[number]
        return key @ matrix / ((key @ norm[:, :, None]) + 1e-5)

    def before(number):
        def hook(layer, args):
            query = features(args[0] @ maps[number]["W_mq"].T)
            return (args[0] + recall(number, query), *args[1:])

        return hook

    def after(number):
        def hook(layer, args, output):
            whole = output[0] if isinstance(output, tuple) else output
            own, written = maps[number], whole[:, -tokens:]
            key, value = features(written @ own["W_mk"].T), written @ own["W_mv"].T
            matrix, norm = held[number]
            news = torch.ones(2, tokens)
            if not first:
                value = value - recall(number, key)
                overlap = (key * norm[:, None]).sum(-1) + 1e-5
                news = (1 - overlap / (key.square().sum(-1) + 1e-5)).clamp(0, 1)
            strength = torch.sigmoid(written @ own["W_mb"].T + own["bias"])
            matrix = matrix + key.transpose(1, 2) @ (strength * value)
            held[number] = (matrix, norm + (news[:, :, None] * key).sum(1))

        return hook

    for number, layer in enumerate(module.model.layers):
        layer.register_forward_pre_hook(before(number))
        layer.register_forward_hook(after(number))
    ids, wanted = np.random.default_rng(3).integers(0, VOCAB, (2, 40)), []
    with torch.no_grad():
        for segment in torch.tensor(ids).split(10, dim=1):
            embedded = module.get_input_embeddings()(segment)
            inputs = torch.cat([embedded, memory.expand(2, -1, -1)], dim=1)
            wanted.append(module(inputs_embeds=inputs).logits[:, :-tokens])
            first = False

    model = rmt_jax.load(tmp_path)
    m = model.config.model
    assert (m.cell, m.memory_tokens, m.d_mem, m.nu, m.layers) == ("armt", tokens, keys, nu, 2)
    logits, found = model.forward(ids)
    wanted = torch.cat(wanted, dim=1).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    for number, parts in enumerate(held):
        for ours, theirs in zip(found.state, parts, strict=True):
            near = 1e-4 * theirs.abs().max().item()  # recalling divides by small sums
            np.testing.assert_allclose(ours[number], theirs, rtol=0, atol=near)
