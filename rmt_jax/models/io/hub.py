"""Weights that others made: GPT-2 and the authors' RMT and ARMT checkpoints, without torch.

A source is a local folder or a name on the hub. Its sizes come from a `config.json` beside the
weights (ours, HF's, or the form with `num_mem_tokens` and `segment_size`), else from the tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax import models
from rmt_jax.models.io import names, torch_pickle, weights
from rmt_jax.models.io.weights import WeightsError

SINGLE = ("model.safetensors", "pytorch_model.bin")
PATTERNS = ["*.json", "model*.safetensors", "merges.txt"]
OLDER = [*PATTERNS, "pytorch_model*.bin"]  # the same weights again where both are there
SEGMENT, HEAD_WIDTH = 512, 64  # where nothing says otherwise: the authors' and GPT-2's
MEMORY_TOKENS, NU = 16, 3
ASSETS = Path(__file__).resolve().parents[2] / "assets"
# Checkpoints that come with the package.
SHIPPED = ("backbone", "backbone-rmt", "multitask", "multitask-wide")


@dataclass(frozen=True)
class Source:
    """What was found in a folder."""

    folder: Path
    config: settings.Config
    params: dict[str, Any]  # nested, numpy, in the dtypes of the file
    end: int | None  # id that ends a text, where a config.json names one
    guessed: tuple[str, ...]  # sizes that nothing in the folder says outright


def open_source(name: str | Path, revision: str | None = None) -> Source:
    """Reads a folder or hub name. Raises WeightsError with what was found and what was expected."""
    folder = resolve(name, revision)
    if (folder / weights.FILE).is_file():
        return _open_run(folder)
    flat = names.to_ours(read_tensors(folder), str(folder))
    said = _read_config(folder)
    config, guessed = infer(flat, said, str(folder))
    if not config.model.tied_head:  # a head that happens to equal the embedding
        flat.setdefault("backbone/head", flat["backbone/wte"])
    return Source(folder, config, weights.unflatten(flat), _end(folder, said), guessed)


def _open_run(folder: Path) -> Source:
    """A run's workdir: its config, and the weights that training chose."""
    said = _read_config(folder)
    if not said:
        raise WeightsError(
            f"{folder} holds {weights.FILE} but no config.json of the run beside it."
        )
    said.pop("segment_size")
    end = _end(folder, {})
    return Source(folder, settings.from_dict(said), weights.load(folder), end, ())


def _end(folder: Path, said: Mapping[str, Any]) -> int | None:
    if said.get("eos_token_id") is not None:
        return int(said["eos_token_id"])
    return _read_config(folder, "generation_config.json").get("eos_token_id")


def fit(
    config: settings.Config, params: Mapping[str, Any], what: str
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The static part of the model that `config` describes, and `params` checked against it.

    Nothing is allocated. Raises WeightsError by name, ConfigError for sizes that can't be.
    """
    flat = weights.flatten(params)
    if "backbone/wte" not in flat:
        raise WeightsError(f"{what} has no embedding table backbone/wte: no weights of ours.")
    vocab = flat["backbone/wte"].shape[0]
    tasks = flat["prompt/table"].shape[0] if "prompt/table" in flat else 1
    graph, wanted = models.split(
        nnx.eval_shape(lambda: models.build(config.model, config.prompt, vocab, tasks, nnx.Rngs(0)))
    )
    return graph, weights.adopt(wanted, params, what)


def initialise(params: Mapping[str, Any], config: settings.Config, source: str) -> dict[str, Any]:
    """Fresh `params` with everything that `source` holds put in: where a training starts.

    The backbone must fit by name and shape; memory and prompt are taken where the source has the
    same cell.
    What it lacks stays as drawn (a zero convolution is no convolution), except memory tokens, which
    are scaled to the source's embeddings. The table of positions may be longer there than here.
    `source`: folder, hub name, or one of `SHIPPED`. Raises WeightsError.
    """
    opened = open_source(source)
    found, fresh = weights.flatten(opened.params), weights.flatten(params)
    if "backbone/head" in fresh:
        found.setdefault("backbone/head", found["backbone/wte"])
    optional = ("memory", "prompt/", "associative/", "backbone/blocks/conv")
    missing = [n for n in fresh if n not in found and not n.startswith(optional)]
    extra = [n for n in found if n not in fresh and n not in ("memory", "prompt/table")]
    extra = [n for n in extra if not n.startswith("associative/")]
    if missing or extra:
        raise WeightsError(
            f"Training can't start from {source}: it lacks {', '.join(missing) or 'nothing'} and "
            f"has {', '.join(extra) or 'nothing'} too many for this config; compare its config "
            f"({opened.config.model}) with yours."
        )
    same_cell = opened.config.model.cell == config.model.cell
    result = {}
    for name, value in fresh.items():
        value = np.asarray(value)
        start = found.get(name)
        if name == "backbone/wpe":
            value = _positions(value, found[name], config, opened.config, source)
        elif start is not None and (name.startswith("backbone/") or same_cell):
            if start.shape != value.shape:
                raise WeightsError(
                    f"Training can't start from {source}: {name} is {list(start.shape)} there and "
                    f"{list(value.shape)} with this config."
                )
            value = start
        elif name == "memory" and config.model.cell != "prmt":
            scale = found["backbone/wte"].astype(np.float32).std()
            value = value * (scale / np.asarray(fresh["backbone/wte"]).std())
        result[name] = np.asarray(value, np.float32)
    return weights.unflatten(result)


def _positions(
    fresh: np.ndarray,
    found: np.ndarray,
    config: settings.Config,
    theirs: settings.Config,
    source: str,
) -> np.ndarray:
    """The source's rows of text positions; rows of the memory's own where both have them."""
    rows = config.model.max_positions
    if theirs.model.max_positions < rows or found.shape[1] != fresh.shape[1]:
        raise WeightsError(
            f"Training can't start from {source}: its position table is {list(found.shape)} and "
            f"this config wants {rows:,} rows of width {fresh.shape[1]}; lower model.max_positions."
        )
    own = found[theirs.model.max_positions :]
    own = own if own.shape == fresh[rows:].shape else fresh[rows:]
    return np.concatenate([found[:rows], own])


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, a name of `SHIPPED` in the package; anything else is downloaded from
    the hub (weights and json only). NAME@REVISION pins a branch, tag or commit wherever a hub name
    is taken."""
    folder = Path(name).expanduser()
    if str(name) in SHIPPED:
        return ASSETS / str(name)
    if folder.is_dir():
        return folder
    if folder.is_file() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        found = "a file" if folder.is_file() else "not there"
        raise WeightsError(
            f"{name} is {found}; give the folder that holds {' or '.join(SINGLE)}, or a name on "
            "the hub such as gpt2 or booydar/rmt-gpt2-babilong-qa1."
        )
    from huggingface_hub import snapshot_download

    repository, _, pinned = str(name).partition("@")
    revision = revision or pinned or None
    try:
        found = Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
        if not any(found.glob("model*.safetensors*")):
            snapshot_download(repository, revision=revision, allow_patterns=OLDER)
        return found
    except Exception as error:  # the hub's errors have no common parent below Exception
        raise WeightsError(
            f"There is no folder {name} here, and the hub gave nothing under that name "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Check "
            "the spelling and the network, or download it elsewhere and give the folder; with the "
            f"package come {', '.join(SHIPPED)}."
        ) from error


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder: one file, or the files that an index names."""
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name)
        if index.is_file():
            return _read_sharded(index)
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise WeightsError(
        f"{folder} holds no weights: expected {', '.join(SINGLE)} or their .index.json, found: "
        f"{inside}."
    )


def infer(
    flat: Mapping[str, np.ndarray], said: Mapping[str, Any], what: str
) -> tuple[settings.Config, tuple[str, ...]]:
    """Config of weights under our names, and the sizes that had to be guessed."""
    if "rmt_jax" in said:
        return settings.from_dict(said["rmt_jax"]), ()
    _refuse_other_shapes(said, what)
    guessed = []

    def size(key: str, default: int, why: str) -> int:
        if said.get(key) is None:
            guessed.append(f"{key} {default} ({why})")
        return int(said.get(key) or default)

    layers = flat["backbone/blocks/qkv/bias"].shape[0]
    width = flat["backbone/wte"].shape[1]
    if said.get("n_head") is None and width % HEAD_WIDTH:
        raise WeightsError(
            f"{what} says nothing about heads, and width {width} is no multiple of {HEAD_WIDTH}; "
            'put a config.json with "n_head" beside the weights.'
        )
    heads = size("n_head", max(1, width // HEAD_WIDTH), f"width {width} / {HEAD_WIDTH}")
    cell = "none"
    if "memory" in flat:
        cell = "armt" if "associative/query" in flat else "rmt"
        cell = "prmt" if flat["memory"].ndim == 3 else cell
    model = settings.Model(cell=cell, layers=layers, width=width, heads=heads)
    model = replace(model, tied_head="backbone/head" not in flat)
    if "backbone/wpe" not in flat:
        raise WeightsError(f"{what} has no position table transformer.wpe.weight; GPT-2 has one.")
    rows = flat["backbone/wpe"].shape[0]
    if cell == "none":
        segment = min(int(said.get("segment_size") or rows), rows)
        model = replace(model, max_positions=rows, memory_tokens=0, segment_tokens=segment)
    else:
        memory = flat["memory"].shape[-2]
        segment = size("segment_size", SEGMENT, "the authors'")
        copies = 1 if cell == "armt" else 2
        layout, base = _layout(rows, copies * memory, said)
        model = replace(
            model,
            memory_tokens=memory,
            segment_tokens=segment,
            position_layout=layout,
            max_positions=base,
        )
    if cell == "armt":
        d_mem = flat["associative/query"].shape[-1]
        model = replace(model, d_mem=d_mem, nu=size("nu", NU, "the authors'"))
    prompt = settings.Prompt(source="none", tokens=0)
    return settings.Config(model=model, prompt=prompt), tuple(guessed)


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


def _refuse_other_shapes(said: Mapping[str, Any], what: str) -> None:
    """GPT-2 variants in HF's config.json that compute something else."""
    wanted = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "layer_norm_epsilon": 1e-5,
    }
    for key, value in wanted.items():
        if said.get(key, value) != value:
            raise WeightsError(
                f"{what}/config.json says {key} = {said[key]!r}, but only {value!r} can be loaded: "
                "this backbone is GPT-2."
            )
    width, inner = said.get("n_embd"), said.get("n_inner")
    if width and inner and inner != 4 * width:
        raise WeightsError(
            f"{what}/config.json says n_inner = {inner}; GPT-2's is 4·{width} = {4 * width}."
        )


def _read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON: {error}.") from error
    if not isinstance(said, dict):
        raise WeightsError(f"{file} should hold an object with sizes, not a {type(said).__name__}.")
    # The two names that the field has for the same thing.
    said.setdefault("segment_size", said.get("segment_tokens"))
    return said


def _read_file(file: Path) -> dict[str, np.ndarray]:
    return torch_pickle.read(file) if file.suffix == ".bin" else weights.read_safetensors(file)


def _read_sharded(index: Path) -> dict[str, np.ndarray]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(table.values()))
        inside = all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weight files: {error!r}.") from error
    if not inside:
        raise WeightsError(f"{index} names files outside its own folder; it was not followed.")
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        tensors |= _read_file(index.parent / name)
    missing = sorted(table.keys() - tensors.keys())
    if missing:
        raise WeightsError(f"{index} promises {missing[0]} and {len(missing) - 1} more not found.")
    return tensors
