"""The shape of the weights that a training starts from, known before they are loaded.

`model.backbone=init` leaves backbone, sizes, positions and options to what `config.init` names: a
run, an exported folder, a model of Hugging Face's layout, adapters, a GGUF file. A config.json or
the head of a file is read and no tensor, so that a plan for a model that no machine here could hold
takes a second.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmt_jax import config as settings
from rmt_jax.config import ConfigError
from rmt_jax.gguf_file import SUFFIX
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import adapters, hub, names, weights
from rmt_jax.models.io.folder import read_config, resolve, with_defaults
from rmt_jax.models.io.weights import WeightsError

INIT = "init"  # as the name of a backbone: that of the weights to start from
SIZES = ("layers", "width", "heads", "positions")
# A training may have more of these than its source, or a shorter table: `Backbone.adopt` knows.
CHOSEN = ("max_positions", "conv_width", "tied_head")
FILES = ["*config.json", f"{adapters.OURS}.json"]  # of a name on the hub


class Shape(NamedTuple):
    """What is known of weights that are not loaded."""

    model: settings.Model
    vocab: int | None  # tokens that they embed; None where a run's config does not say


def settle(config: settings.Config, known: settings.Config | None = None) -> settings.Config:
    """The config with every field of `model` that `model.backbone=init` leaves open filled in.

    known: the config of the run that goes on in this workdir; what it started from may be gone.
    Raises ConfigError for sizes that are set and are not the source's, WeightsError for a source
    that can't be used, by name.
    """
    if config.model.backbone != INIT:
        return config
    if known is None or known.init != config.init:
        known = config.replace(model=of_source(config.init).model)
    return config.replace(model=_filled(config.model, known.model, config.init))


def of_source(name: str) -> Shape:
    """Of a folder, a name on the hub or a GGUF file. Raises WeightsError."""
    if Path(name).suffix == SUFFIX:
        return _of_weights(name)
    folder = resolve(name, only=FILES)
    local, said = Path(name).expanduser().is_dir(), read_config(folder)
    if (folder / adapters.CONFIG).is_file():
        own = read_config(folder, f"{adapters.OURS}.json")
        return _of_run(own, folder, local) if own else of_source(adapters.base_of(folder))
    if isinstance(own := said.get("rmt_jax", said if "stages" in said else None), Mapping):
        return _of_run(own, folder, local)
    wrappers = [their.model_type for n in CELLS if (their := CELLS[n].their_config)]
    if said.get("model_type") in (None, *wrappers):
        if not said and not any(folder.glob("*model*")):
            raise WeightsError(
                f"{folder} holds no config.json and no weights: there is nothing that says the"
                " sizes of a model."
            )
        return _of_weights(name)  # the authors' files say their sizes by their tensors
    backbone = names.backbone_of_type(said["model_type"], str(folder))
    said = with_defaults(said, folder)
    try:
        shapes = BACKBONES[backbone].hf_shapes(said)
    except KeyError as error:
        raise WeightsError(
            f"{folder}/config.json does not say {error.args[0]}, without which the size of a"
            f" {said['model_type']} is not known: put the model's own config.json there."
        ) from None
    flat: Any = {
        f"backbone/{name}": jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in shapes.items()
    }
    model = hub.infer(backbone, flat, said, str(folder))[0].model
    return Shape(model, BACKBONES[backbone].vocab_of(hub.part_of(flat, "backbone")))


def _of_run(said: Mapping[str, Any], folder: Path, local: bool) -> Shape:
    config = settings.from_dict({k: v for k, v in said.items() if k != "segment_size"})
    hub.import_extensions(config, folder, local)
    file = folder / weights.FILE
    own = hub.part_of(weights.open_own(file), "backbone") if file.is_file() else {}
    backbone = BACKBONES[config.model.backbone]
    return Shape(config.model, backbone.vocab_of(own) if own else None)


def _of_weights(name: str) -> Shape:
    opened = hub.open_source(name)
    model = opened.config.model
    vocab = BACKBONES[model.backbone].vocab_of(hub.part_of(opened.flat, "backbone"))
    return Shape(model, vocab)


def _filled(ours: settings.Model, found: settings.Model, source: str) -> settings.Model:
    """`ours` with the shape of `found`. Raises ConfigError where both say something else."""
    plain, taken = settings.Model(), {}
    for name in (*SIZES, *CHOSEN):
        said, theirs = getattr(ours, name), getattr(found, name)
        taken[name] = theirs if said == getattr(plain, name) else said
        if name in SIZES and taken[name] != theirs:
            raise ConfigError(
                f"model.backbone=init takes model.{name} from {source}, which has {theirs!r}, but"
                f" the config says {said!r}: leave it out, or name the backbone in place of init."
            )
    backbone = BACKBONES[found.backbone]
    known = asdict(backbone.options(found))
    for name, value in ours.backbone_options.items():
        if name not in known or known[name] != value:
            raise ConfigError(
                f"model.backbone=init takes model.backbone_options from {source}, which has"
                f" {name}={known.get(name)!r}, but the config says {value!r}: leave it out."
            )
    options = dict(found.backbone_options)
    return replace(ours, backbone=found.backbone, backbone_options=options, **taken)
