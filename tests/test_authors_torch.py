"""The authors' later checkpoints: small files of the same form, against a loop around Hugging
Face's model in PyTorch."""

import json

import numpy as np
import pytest
from test_llama_torch import VOCAB, build

import rmt_jax
from rmt_jax import convert
from rmt_jax.models.io import authors, hub, weights
from rmt_jax.models.io.weights import WeightsError

torch = pytest.importorskip("torch", reason="pip install -e '.[test]' brings torch")
pytestmark = pytest.mark.torch

TOKENS, KEYS, NU, LENGTH, RANK = 3, 8, 3, 10, 2


def made(family):
    """A small model, its memory, and its maps by layer."""
    torch.manual_seed(1)
    half = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    module = build(family, **({"rope_parameters": half} if family == "gpt_neox" else {}))
    memory = 0.5 * torch.randn(TOKENS, 16)
    maps = [
        {"W_mq": torch.randn(KEYS, 16), "W_mk": torch.randn(KEYS, 16),
         "W_mv": 0.3 * torch.randn(16, 16), "W_mb": torch.randn(1, 16), "bias": torch.randn(1)}
        for _ in range(2)
    ]  # fmt: skip
    return module, memory, maps


def layers_of(module):
    return module.model.layers if hasattr(module, "model") else module.gpt_neox.layers


def by_loop(module, memory, maps, ids, *, correction, unit, joint):
    """Logits of every segment, and each layer's (matrix, normaliser) at the end."""
    held = [(torch.zeros(len(ids), 2 * KEYS * NU, 16), torch.zeros(len(ids), 2 * KEYS * NU))
            for _ in maps]  # fmt: skip
    first, hooks = True, []

    def features(x):
        both = torch.cat([x.relu(), (-x).relu()], dim=-1)
        rolled = torch.cat([both * both.roll(j, dims=-1) for j in range(1, NU + 1)], dim=-1)
        return torch.nn.functional.normalize(rolled, dim=-1) if unit else rolled

    def recall(number, key):
        matrix, norm = held[number]
        return key @ matrix / ((key @ norm[:, :, None]) + 1e-5)

    def before(number):
        def hook(layer, args):
            query = features(args[0] @ maps[number]["W_mq"].T)
            return args if first else (args[0] + recall(number, query), *args[1:])

        return hook

    def after(number):
        def hook(layer, args, output):
            whole = output[0] if isinstance(output, tuple) else output
            own, written = maps[number], whole[:, -TOKENS:]
            key, value = features(written @ own["W_mk"].T), written @ own["W_mv"].T
            matrix, norm = held[number]
            news = torch.ones(len(ids), TOKENS)
            if not first:
                value = value - recall(number, key)
                size = key.square().sum(-1) + (0 if unit else 1e-5)
                overlap = (key * norm[:, None]).sum(-1) + 1e-5
                news = (1 - overlap / size).clamp(0, 1) if correction else news
            strength = torch.sigmoid(written @ own["W_mb"].T + own["bias"])
            matrix = matrix + key.transpose(1, 2) @ (strength * value)
            held[number] = (matrix, norm + (news[:, :, None] * key).sum(1))

        return hook

    for number, layer in enumerate(layers_of(module)):
        hooks += [layer.register_forward_pre_hook(before(number)),
                  layer.register_forward_hook(after(number))]  # fmt: skip
    wanted = []
    seen = torch.tril(torch.ones(LENGTH + TOKENS, LENGTH + TOKENS))
    if joint:
        seen[-TOKENS:, -TOKENS:] = 1
    mask = ((1 - seen) * torch.finfo(torch.float32).min)[None, None].expand(len(ids), 1, -1, -1)
    with torch.no_grad():
        for segment in torch.tensor(ids).split(LENGTH, dim=1):
            embedded = module.get_input_embeddings()(segment)
            inputs = torch.cat([embedded, memory.expand(len(ids), -1, -1)], dim=1)
            wanted.append(module(inputs_embeds=inputs, attention_mask=mask).logits[:, :-TOKENS])
            first = False
    for hook in hooks:
        hook.remove()
    return torch.cat(wanted, dim=1).numpy(), held


def tensors_of(module, maps, prefix):
    """Names and values as a wrapper around the layers saves them, below `prefix`."""
    state = {}
    for name, value in module.state_dict().items():
        parts = name.split(".")
        if len(parts) > 3 and parts[2].isdigit():
            parts.insert(3, "layer")
        state[prefix + ".".join(parts)] = value
    root = "model.layers" if hasattr(module, "model") else "gpt_neox.layers"
    for number, own in enumerate(maps):
        for name, value in own.items():
            name = "W_mb.bias" if name == "bias" else f"{name}.weight"
            state[f"{prefix}{root}.{number}.{name}"] = value
    return {name: np.ascontiguousarray(value.numpy()) for name, value in state.items()}


def write(folder, tensors, said):
    weights.write(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def same(model, ids, wanted, held):
    logits, found = model.forward(ids)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())
    for number, parts in enumerate(held):
        for ours, theirs in zip(found.state, parts, strict=True):
            near = 1e-4 * theirs.abs().max().item()  # recalling divides by small sums
            np.testing.assert_allclose(ours[number], theirs, rtol=0, atol=near)


IDS = np.random.default_rng(3).integers(0, VOCAB, (2, 4 * LENGTH))


@pytest.mark.parametrize(
    ("layers_alone", "config"), ((True, {"segment_size": LENGTH, "correction": False}), (False, {}))
)
def test_lora_around_llama(tmp_path, monkeypatch, layers_alone, config):
    """RMT-Llama-3.2-1B-Instruct-…-lora: PEFT's wrapper inside, each layer saved once or twice, the
    embedding under the head's name, and nothing said of the backbone."""
    module, memory, maps = made("llama")
    module.model.embed_tokens.weight.data = module.lm_head.weight.data  # tied
    tensors = tensors_of(module, maps, "memory_cell.model.base_model.model.")
    del tensors["memory_cell.model.base_model.model.model.embed_tokens.weight"]
    tensors["memory_cell.memory"] = memory.numpy()
    for number, layer in enumerate(layers_of(module)):
        for part in ("q_proj", "v_proj"):
            name = (
                f"memory_cell.model.base_model.model.model.layers.{number}.layer.self_attn.{part}"
            )
            linear = getattr(layer.self_attn, part)
            a = 0.3 * torch.randn(RANK, linear.in_features)
            b = 0.3 * torch.randn(linear.out_features, RANK)
            tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
            tensors[f"{name}.lora_A.default.weight"] = a.numpy()
            tensors[f"{name}.lora_B.default.weight"] = b.numpy()
            linear.weight.data = linear.weight.data + 32 / RANK * b @ a
    wrapped, copy = "memory_cell.model.base_model.model.model.layers.", "memory_cell.layers."
    twice = {copy + n.removeprefix(wrapped): v for n, v in tensors.items() if wrapped in n}
    if layers_alone:
        tensors = {n: v for n, v in tensors.items() if wrapped not in n}
    tensors |= twice
    said = module.config.to_dict() | {"tie_word_embeddings": True}
    monkeypatch.setitem(authors.BACKBONE_CONFIGS, (VOCAB, 16, 2), said)
    folder = write(tmp_path, tensors, config | {"max_n_segments": 4, "segment_size": LENGTH})
    opened = hub.open_source(folder)
    told = " ".join(opened.guessed)
    assert "lora_alpha 32" in told and "backbone's config" in told
    assert ("correction true" in told) == ("correction" not in config)
    m = opened.config.model
    assert (m.cell, m.memory_tokens, m.segment_tokens, m.d_mem) == ("armt", TOKENS, LENGTH, KEYS)
    correction = config.get("correction", True)
    wanted, held = by_loop(
        module, memory, maps, IDS, correction=correction, unit=False, joint=False
    )
    same(rmt_jax.load(folder), IDS, wanted, held)
    convert.export_weights(folder, tmp_path / "out")  # and back, as ours
    same(rmt_jax.load(tmp_path / "out"), IDS, wanted, held)


@pytest.mark.parametrize(
    ("family", "kind"),
    (("llama", "ARMTForCausalLM"), ("llama", "InnerLoopARMTForCausalLM"),
     pytest.param("gpt_neox", "InnerLoopARMTForCausalLM", marks=pytest.mark.slow)),
)  # fmt: skip
def test_armt_as_a_class_of_its_own(tmp_path, family, kind):
    """ARMT-llama3.2-1B, ARMT-SmolLM2-360m: the backbone's config inside, keys of length 1; below
    `armt.memory_cell.`, or with the inner loop's names, whose memory tokens see each other."""
    module, memory, maps = made(family)
    inner = kind.startswith("Inner")
    tensors = tensors_of(module, maps, "model." if inner else "armt.memory_cell.model.")
    tensors["memory" if inner else "armt.memory_cell.memory"] = memory.numpy()
    said = {
        "model_type": "armt", "architectures": [kind], "base_model_config": module.config.to_dict(),
        "base_model_name": None, "num_mem_tokens": TOKENS, "d_mem": KEYS, "segment_size": LENGTH,
        "segment_alignment": "left", "correction": True, "use_denom": True, "n_heads": 1,
        "gating": False, "sliding_window": False, "use_sink": False, "wrap_layers": None,
    }  # fmt: skip
    folder = write(tmp_path, tensors, said)
    model = rmt_jax.load(folder)
    options = model.config.model.cell_options
    assert options["unit_keys"] and options["joint_writing"] == inner
    wanted, held = by_loop(module, memory, maps, IDS, correction=True, unit=True, joint=inner)
    same(model, IDS, wanted, held)
    unrolled = rmt_jax.config.update(
        model.config, {"model.scan_layers": False, "model.schedule": "diagonal"}
    )
    for config in (unrolled, rmt_jax.config.update(unrolled, {"model.schedule": "sequential"})):
        again = rmt_jax.api.Model(config, model.params)
        memory_after = again.read(again.initial_memory(2), IDS)
        for number, parts in enumerate(held):
            near = 1e-4 * parts[0].abs().max().item()
            np.testing.assert_allclose(memory_after.state.matrix[number], parts[0], atol=near)


def test_variants_are_refused_by_name(tmp_path):
    module, memory, maps = made("llama")
    tensors = tensors_of(module, maps, "model.") | {"memory": memory.numpy()}
    good = {"model_type": "armt", "architectures": ["InnerLoopARMTForCausalLM"],
            "base_model_config": module.config.to_dict(), "segment_size": LENGTH}  # fmt: skip
    for number, (changes, sentence) in enumerate(
        (
            ({"sliding_window": True}, "says sliding_window = True, but of armt only False"),
            ({"use_sink": True}, "says use_sink = True"),
            ({"n_heads": 2}, "says n_heads = 2"),
            ({"use_denom": False}, "says use_denom = False"),
            ({"gating": True}, "says gating = True"),
            ({"wrap_layers": [True, False]}, "layers that have no memory"),
            ({"architectures": ["ThinkingARMTForCausalLM"]}, "is a ThinkingARMTForCausalLM"),
            (
                {"base_model_config": None, "base_model_name": str(tmp_path / "absent" / "x")},
                "whose config.json can't be had",
            ),
        )
    ):
        folder = write(tmp_path / str(number), tensors, good | changes)
        with pytest.raises(WeightsError, match=sentence):
            hub.open_source(folder)
    here = tmp_path / "base"
    here.mkdir()
    (here / "config.json").write_text(json.dumps(good["base_model_config"]))
    named = good | {"base_model_config": None, "base_model_name": str(here)}
    assert hub.open_source(write(tmp_path / "named", tensors, named)).config.model.cell == "armt"
