"""A run -> Hugging Face's and the authors' layout, or PEFT's for its adapters."""

import json
from pathlib import Path
from typing import Any

from rmt_jax.config import Config, to_dict
from rmt_jax.conversion.card import about_run, adapter_card, model_card
from rmt_jax.conversion.folders import (
    SPECIAL,
    free,
    generation,
    one_or_all,
    sizes,
    write_json,
    write_tokenizer,
)
from rmt_jax.files import write_text


def export_weights(
    workdir: str | Path, out: Path, dtype: str = "float32", name: str = "FOLDER"
) -> None:
    """Writes the weights of `workdir` (or of anything that can be loaded) in the authors' layout,
    some rows at a time: a model of any size needs no device, and little of the host. name: what the
    model card says to load it by.

    Raises WeightsError for weights that can't be used, Usage when `out` holds something already.
    """
    from rmt_jax import checkpoint_tokenizer
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS
    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import names, weights

    opened = pretrained.open_source(workdir)
    flat, model = opened.flat, opened.config.model
    pretrained.fit(opened.config, weights.unflatten(flat), str(workdir))
    run = about_run(Path(workdir))
    free(out)
    theirs = names.to_theirs(flat, BACKBONES[model.backbone], CELLS[model.cell])
    file = out / "model.safetensors"
    weights.write(file, theirs, {"format": "pt"}, dtype)  # so named, PyTorch takes it
    ends = checkpoint_tokenizer.ends_of(opened)
    write_json(out / "config.json", _their_config(opened.config, flat, ends))
    write_json(out / "generation_config.json", generation(ends))
    write_tokenizer(opened, out)
    if (out / SPECIAL).is_file() and not (out / "tokenizer_config.json").exists():
        special = json.loads((out / SPECIAL).read_text(encoding="utf-8"))
        hub = {"eos_token": special["end"], "pad_token": special["pad"]}
        hub["tokenizer_class"] = "PreTrainedTokenizerFast"  # so that transformers can load it
        write_json(out / "tokenizer_config.json", hub)
    count = sum(value.size for value in flat.values())
    card = model_card(opened.config, count, run, name)
    write_text(out / "README.md", card)
    print(f"{sizes(opened.config, flat)}\nwritten: {out}")


def export_adapter(workdir: Path, out: Path, name: str = "FOLDER") -> None:
    """Writes the adapters of the run `workdir`, its memory and its tokenizer to the folder `out`.
    name: what the model card says to load it by.

    Raises WeightsError for a run without adapters, or whose base model can't be opened; Usage when
    `out` holds something already.
    """
    from rmt_jax.models import lora
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.io import adapters, weights
    from rmt_jax.models.io import hub as pretrained

    opened = pretrained.open_source(workdir)
    flat = weights.flatten(weights.load(workdir)) if (workdir / weights.FILE).is_file() else {}
    if not any(name.startswith(f"{lora.TREE}/") for name in flat):
        raise weights.WeightsError(
            f"{workdir} is no run with adapters: train one with optimizer.train=lora, or export the"
            " whole model (convert export)."
        )
    config, run = opened.config, about_run(workdir)
    base = weights.flatten(pretrained.open_source(config.init).params)
    free(out)
    adapters.write(out, flat, BACKBONES[config.model.backbone], config, base)
    write_tokenizer(opened, out)
    count = sum(v.size for n, v in flat.items() if n.startswith(f"{lora.TREE}/"))
    write_text(out / "README.md", adapter_card(config, count, run, name))
    print(f"{count:,} weights of adapters, for {config.init}\nwritten: {out}")


def _their_config(config: Config, flat: dict[str, Any], ends: tuple[int, ...]) -> dict[str, Any]:
    """HF's fields of the backbone, the authors' of the memory, and our whole tree for an exact way
    back."""
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS
    from rmt_jax.models.io import hub

    m = config.model
    cell = CELLS[m.cell]
    backbone = BACKBONES[m.backbone].to_hf_config(m, hub.part_of(flat, "backbone"))
    return backbone | {
        "bos_token_id": next(iter(ends), None),
        "eos_token_id": one_or_all(ends),
        "kind": m.cell,
        "num_mem_tokens": m.memory_tokens if cell.token_copies() else 0,
        "segment_size": m.segment_tokens,
        "d_mem": m.d_mem if hub.part_of(flat, "memory/layers") else None,
        "wrap_pos": m.position_layout == "wrap_pos",
        "rmt_jax": to_dict(config),
    }
