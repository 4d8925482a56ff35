"""More layers for a trained model, which change nothing until they are trained.

Chen et al. 2016, "Net2Net": a larger network that starts as the smaller one. A new layer is drawn
as at the start of training, with zeros where it would add to what passes through it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmt_jax.cli import Usage
from rmt_jax.config import to_dict
from rmt_jax.conversion.folders import free, write_json, write_tokenizer


def deepen(source: str, layers: int, out: Path, dtype: str = "float32") -> None:
    """Writes the model `source` (anything that can be loaded) with `layers` layers to the workdir
    `out`, and the same outputs. Where the new ones stand: `old_layers`.

    Raises Usage for no more layers than there are, for adapters (LoRA), or where `out` holds
    something already; WeightsError for weights that can't be used.
    """
    import numpy as np
    from flax import nnx

    from rmt_jax import models
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.io import hub, weights
    from rmt_jax.models.io.folder import argument

    opened = hub.open_source(source)
    hub.fit(opened.config, opened.params, source)
    config, old = opened.config, weights.flatten(opened.params)
    before = config.model.layers
    if layers <= before:
        raise Usage(f"--layers {layers}: {source} has {before} already; name a larger number.")
    if any(name.startswith("adapters/") for name in old):
        raise Usage(f"{source} has adapters: export it, which puts them into its weights, first.")
    free(out)
    deeper = config.replace(model=dataclasses.replace(config.model, layers=layers))
    vocab = BACKBONES[config.model.backbone].vocab_of(hub.part_of(old, "backbone"))
    drawn = models.build(deeper.model, deeper.prompt, vocab, len(config.data.tasks), nnx.Rngs(0))
    infos, places = drawn.weights(), old_layers(before, layers)
    added = weights.flatten(models.split(drawn)[1])
    made = {}
    for name, value in old.items():
        if infos[name].axes[0] != "layers":
            made[name] = value
            continue
        new = np.array(added[name], np.float32)
        if _adds(name, infos):
            new[:] = 0
        new[np.asarray(places)] = value
        made[name] = new
    weights.save(out, weights.unflatten(made), dtype)
    write_json(out / "config.json", to_dict(deeper))
    write_tokenizer(opened, out / "tokenizer")
    at = ", ".join(str(i + 1) for i in range(layers) if i not in places)
    print(
        f"{source}: {before} layers -> {layers}, new: {at}\nwritten: {out}\n"
        f"next:    python -m rmt_jax.train --config CONFIG --config.init={argument(out)}"
        f" --config.model.layers={layers}"
    )


def old_layers(before: int, after: int) -> list[int]:
    """Where the `before` old layers stand among `after`: new ones in front of the last ones, in as
    equal parts as can be."""
    new, places, at = after - before, [], 0
    for layer in range(before):
        last = before - layer  # 1: the last one
        at += new // before + (last <= new % before)
        places.append(at)
        at += 1
    return places


def _adds(name: str, infos: Mapping[str, Any]) -> bool:
    """Does a layer add what this weight makes to what passes through it?"""
    info = infos.get(name.removesuffix("/bias") + "/kernel", infos[name])
    return info.kind == "convolution" or (
        info.kind == "matrix" and info.axes[-1] in ("embed", "memory_values")
    )
