"""Weights that others made: Hugging Face's models and the authors' RMT and ARMT checkpoints,
without torch.

A source is a local folder, a name on the hub or a GGUF file. Its sizes come from a `config.json`
beside the weights (ours, HF's, or the form with `num_mem_tokens` and `segment_size`), from the
file's metadata, else from the tensors.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax import config as settings
from rmt_jax import models
from rmt_jax.gguf_file import SUFFIX
from rmt_jax.models import lora
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS
from rmt_jax.models.io import adapters, authors, gguf, lazy, names, weights
from rmt_jax.models.io.folder import (
    end_ids,
    read_config,
    read_tensors,
    resolve,
    with_defaults,
)
from rmt_jax.models.io.lazy import Array, LazyArray
from rmt_jax.models.io.weights import WeightsError

SEGMENT = 1024  # tokens at most, where a checkpoint without memory says nothing of segments


@dataclass(frozen=True)
class Source:
    """What was found in a folder."""

    folder: Path
    config: settings.Config
    flat: dict[str, Array]  # by name, in the dtypes of the file; most of it is not read yet
    # Ids that end a text or a turn, where a config.json names some; the first ends a text.
    ends: tuple[int, ...]
    guessed: tuple[str, ...]  # sizes that nothing in the folder says outright
    # What a GGUF file says of its tokenizer; empty where the folder may hold one.
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def params(self) -> dict[str, Any]:
        """All weights, nested, numpy."""
        return weights.unflatten({name: np.asarray(value) for name, value in self.flat.items()})


def open_source(name: str | Path, revision: str | None = None) -> Source:
    """Opens a folder, hub name or GGUF file. Raises WeightsError with what was found and what was
    expected."""
    if Path(name).suffix == SUFFIX:
        return _open_gguf(Path(name).expanduser())
    folder = resolve(name, revision)
    local = Path(name).expanduser().is_dir()
    if (folder / weights.FILE).is_file():
        return _open_run(folder, local)
    if (folder / adapters.CONFIG).is_file():
        return _open_adapter(folder, local)
    theirs, said, told = authors.settle(read_tensors(folder), read_config(folder), str(folder))
    said = with_defaults(said, folder)
    ours = settings.from_dict(said["rmt_jax"]) if "rmt_jax" in said else None
    if ours is None:
        backbone = names.backbone_of(theirs, said.get("model_type"), str(folder))
    else:
        import_extensions(ours, folder, local)
        backbone = ours.model.backbone
    flat = names.to_ours(theirs, BACKBONES[backbone], str(folder))
    config, guessed = (ours, ()) if ours else infer(backbone, flat, said, str(folder))
    if ours is None:
        names.check_sizes(read_config(folder), held_sizes(config.model, flat), str(folder))
        names.check_head(said, theirs, flat, BACKBONES[backbone], str(folder))
        guessed = (*guessed, *told)
    if not config.model.tied_head:  # a head that happens to equal the embedding
        flat.setdefault("backbone/head", flat[f"backbone/{BACKBONES[backbone].embedding}"])
    return Source(folder, config, flat, end_ids(folder, said), guessed)


def _open_run(folder: Path, local: bool) -> Source:
    """A run's workdir: its config, and the weights that training chose."""
    said = read_config(folder)
    if not said:
        raise WeightsError(
            f"{folder} holds {weights.FILE} but no config.json of the run beside it."
        )
    said.pop("segment_size")
    ends = end_ids(folder, {})
    config = settings.from_dict(said)
    import_extensions(config, folder, local)
    flat = lora.merged(weights.open_own(folder), config.lora)
    return Source(folder, config, flat, ends, ())


def _open_adapter(folder: Path, local: bool) -> Source:
    """A base model with the adapters of a folder in PEFT's layout put into its weights."""
    found = adapters.read(folder)
    base = open_source(found.base)
    config, flat = found.config or base.config, dict[str, Any](base.flat)
    if found.config is not None:
        import_extensions(config, folder, local)
        flat = {n: v for n, v in flat.items() if n.startswith("backbone/")}
    flat |= found.ours
    backbone = BACKBONES[config.model.backbone]
    own = {n: np.asarray(v) for n, v in flat.items() if n.startswith("backbone/")}
    whole = names.to_theirs(own, backbone, CELLS["none"])
    theirs = {n: np.asarray(v) for n, v in whole.items()}
    theirs = adapters.fold(theirs | found.tensors, backbone, found.scale, str(folder))
    flat |= names.to_ours(theirs, backbone, str(folder))
    if config.model.tied_head:
        flat.pop("backbone/head", None)
    if (folder / "tokenizer.json").is_file():
        return Source(folder, config, flat, base.ends, base.guessed)
    return Source(base.folder, config, flat, base.ends, base.guessed, base.tokenizer)


def _open_gguf(file: Path) -> Source:
    """A GGUF file of an architecture that a backbone knows."""
    found = gguf.read(file)
    known = {kind: name for name in BACKBONES for kind in BACKBONES[name].gguf_architectures}
    if found.architecture not in known:
        raise WeightsError(
            f"{file} holds the architecture {found.architecture!r}, but of GGUF files only"
            f" {', '.join(map(repr, known))} can be loaded."
        )
    backbone = BACKBONES[known[found.architecture]]
    flat = names.to_ours(found.tensors, backbone, str(file), backbone.gguf)
    config, guessed = infer(known[found.architecture], flat, found.said, str(file))
    names.check_sizes(found.said, held_sizes(config.model, flat), str(file))
    own = backbone.from_gguf(part_of(flat, "backbone"), config.model, found.architecture)
    flat = {f"backbone/{name}": value for name, value in own.items()}
    rest = (end_ids(file.parent, found.said), guessed, found.tokenizer)
    return Source(file.parent, config, flat, *rest)


def import_extensions(config: settings.Config, folder: Path, local: bool) -> None:
    """Imports the modules that a checkpoint's backbone, cell or tasks come from. Modules run as
    code, so a checkpoint from the hub may not choose them: they must be imported already."""
    if local:
        return settings.import_extensions(config)
    missing = [module for module in config.imports if module not in sys.modules]
    if missing:
        raise WeightsError(
            f"{folder} needs the modules {', '.join(missing)}, which run as code. They are not"
            " imported for a checkpoint from the hub: import them first, or name a folder of your"
            " own that holds the checkpoint."
        )


def fit(
    config: settings.Config, params: Mapping[str, Any], what: str
) -> tuple[models.Outline, dict[str, Any]]:
    """The outline of the model that `config` describes, and `params` checked against it.

    Nothing is allocated. Raises WeightsError by name, ConfigError for sizes that can't be.
    """
    flat = weights.flatten(params)
    backbone = BACKBONES[config.model.backbone]
    own = part_of(flat, "backbone")
    if backbone.embedding not in own:
        raise WeightsError(
            f"{what} has no embedding backbone/{backbone.embedding}: these are no weights of the"
            f" backbone '{config.model.backbone}'."
        )
    tasks = flat["prompt/table"].shape[0] if "prompt/table" in flat else 1
    made = models.outline(config.model, config.prompt, backbone.vocab_of(own), tasks)
    return made, weights.adopt(made.shapes, params, what, names.of_theirs(backbone))


def part_of(flat: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The weights below 'backbone', 'memory' or 'prompt', by their names there."""
    prefix = f"{part}/"
    return {n.removeprefix(prefix): v for n, v in flat.items() if n.startswith(prefix)}


def initialise(params: Mapping[str, Any], config: settings.Config, source: str) -> dict[str, Any]:
    """Fresh `params` with everything that `source` holds put in: where a training starts. Arrays
    are float32, and lazy where they come out of a file; those that stay as drawn are the same
    objects.

    The backbone must fit by name and shape; memory and prompt are taken where the source has the
    same cell. What it lacks stays as drawn, except memory tokens, which are scaled to the source's
    embeddings: all, or those that the config has more. An embedding gets a row per token of the
    tokenizer, where that is the source's own.
    `source`: folder, hub name, or one of `SHIPPED`. Raises WeightsError.
    """
    opened = open_source(source)
    backbone, theirs, ours = BACKBONES[config.model.backbone], opened.config.model, config.model
    fresh, found = weights.flatten(params), opened.flat
    if theirs.backbone != ours.backbone:
        raise WeightsError(
            f"Training can't start from {source}: its backbone is '{theirs.backbone}', this"
            f" config's '{ours.backbone}'."
        )
    own, drawn = part_of(found, "backbone"), part_of(fresh, "backbone")
    own = backbone.adopt(drawn, own, ours, theirs, source)
    missing = [f"backbone/{name}" for name in sorted(drawn.keys() - own.keys())]
    extra = [f"backbone/{name}" for name in sorted(own.keys() - drawn.keys())]
    if missing or extra:
        raise WeightsError(
            f"Training can't start from {source}: it lacks {_list(missing)} and has"
            f" {_list(extra)} too many for this config; compare its config ({theirs}) with yours."
        )
    start: dict[str, Any] = {f"backbone/{name}": value for name, value in own.items()}
    if theirs.cell == ours.cell:
        start |= {n: v for n, v in found.items() if n in fresh and not n.startswith("backbone/")}

    @functools.cache
    def scale() -> np.floating:
        return _std(own[backbone.embedding]) / _std(drawn[backbone.embedding])

    if config.tokenizer == source:
        for name in {backbone.embedding, "head"} & own.keys():
            table = _with_rows(start[f"backbone/{name}"], drawn[name], scale)
            start[f"backbone/{name}"] = table
    for name in CELLS[ours.cell].scaled_by_embedding & start.keys():
        if start[name].shape[0] < fresh[name].shape[0]:
            start[name] = _with_rows(start[name], fresh[name], scale)
    result = {}
    for name, value in fresh.items():
        taken = start.get(name)
        if taken is not None and taken.shape != value.shape:
            way = ""
            if name in (f"backbone/{backbone.embedding}", "backbone/head"):
                way = " A row per token: data.tokenizer=init is the tokenizer of these weights."
            elif name in CELLS[ours.cell].scaled_by_embedding:
                way = f" None can be left out: give model.memory_tokens={taken.shape[0]} or more."
            elif theirs.layers != ours.layers:
                way = f" It has {theirs.layers} layers: give model.layers={theirs.layers}."
            raise WeightsError(
                f"Training can't start from {source}: {name} is {list(taken.shape)} there and "
                f"{list(value.shape)} with this config.{way}"
            )
        if taken is None and name in CELLS[ours.cell].scaled_by_embedding:
            taken = np.asarray(value) * scale()
        result[name] = value if taken is None else taken.astype(np.float32)
    return weights.unflatten(result)


def _with_rows(table: Array, drawn: Array, scale: Callable[[], np.floating]) -> Array:
    """[V, D] `table` with as many rows as `drawn` has. Makers round the rows up, so that the last
    belong to no token; the rows of tokens that were added, to a tokenizer or a memory, are as
    drawn, scaled."""
    (rows, *rest), (wanted, *width) = table.shape, drawn.shape
    if rest != width or rows == wanted:
        return table
    own = LazyArray((min(rows, wanted), *rest), table.dtype, lambda index: table[index])
    if wanted <= rows:
        return own
    return lazy.concatenate(own, np.asarray(drawn)[rows:] * scale())


def _std(table: Array) -> np.floating:
    """As numpy's, with one copy of the table in memory."""
    own = np.array(table, np.float32)
    own -= own.sum(keepdims=True) / own.size
    return np.sqrt(np.multiply(own, own, out=own).sum() / own.size)


def _list(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def infer(
    backbone: str, flat: Mapping[str, Array], said: Mapping[str, Any], what: str
) -> tuple[settings.Config, tuple[str, ...]]:
    """Config of others' weights under our names, and the sizes that had to be guessed."""
    try:
        fields, guessed = BACKBONES[backbone].from_hf_config(said, part_of(flat, "backbone"), what)
    except KeyError as error:
        lost = names.of_theirs(BACKBONES[backbone]).get(f"backbone/{error.args[0]}")
        raise WeightsError(f"{what} has no tensor {lost or error}, which {backbone} has.") from None
    held = part_of(flat, "memory")
    cell = next((name for name in CELLS if CELLS[name].recognises(held)), None)
    if cell is None:
        raise WeightsError(
            f"{what} holds the memory {', '.join(sorted(held))}, which is none of a known cell."
        )
    sizes, more = CELLS[cell].sizes_of(said, held)
    model = replace(settings.Model(backbone=backbone, cell=cell), **(fields | sizes))
    guessed = [*guessed, *more]
    if "segment_tokens" not in sizes:
        most = BACKBONES[backbone].max_places(model) or model.max_positions
        length = min(int(said.get("segment_size") or min(most, SEGMENT)), most)
        model = replace(model, segment_tokens=length)
        if not said.get("segment_size") and length < most:
            guessed.append(f"segment_tokens {length:,} (of a context of {most:,})")
    elif BACKBONES[backbone].table_rows(model, 0):
        grown = CELLS[cell].token_copies() * model.memory_tokens
        layout, base = _layout(model.max_positions, grown, said)
        model = replace(model, position_layout=layout, max_positions=base)
    prompt = settings.Prompt(source="none", tokens=0)
    align = said.get("segment_alignment")
    data = settings.Data(align=align if align in ("left", "right") else "left")
    return settings.Config(model=model, prompt=prompt, data=data), tuple(guessed)


def held_sizes(model: settings.Model, flat: Mapping[str, Array]) -> dict[str, set]:
    """Fields of a config.json that weights under our names say too, and what they may be."""
    backbone, cell = BACKBONES[model.backbone], CELLS[model.cell]
    own, grown = part_of(flat, "backbone"), cell.token_copies() * model.memory_tokens
    said = backbone.to_hf_config(model, own)
    held = {name: {said[name]} for name in backbone.hf_sizes}
    if "n_positions" in said:  # of the whole table, or without the memory's own rows
        held["n_positions"] = {said["n_positions"], said["n_positions"] - grown}
    return held | {"num_mem_tokens": {model.memory_tokens if grown else 0}}


def _layout(rows: int, grown: int, said: Mapping[str, Any]) -> tuple[str, int]:
    """Has the position table grown by the memory's rows? GPT-2's own tables are powers of two."""
    told = said.get("n_positions")
    if said.get("wrap_pos") is not None:
        wrapped = bool(said["wrap_pos"])
    elif told is not None and told in (rows, rows - grown):
        wrapped = rows != told
    else:
        wrapped = _power_of_two(rows - grown) and not _power_of_two(rows)
    return ("wrap_pos", rows - grown) if wrapped else ("plain", rows)


def _power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0
