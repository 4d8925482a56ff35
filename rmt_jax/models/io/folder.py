"""The folder of a checkpoint: where it is, the tensors in it, and what its config.json says.

A folder here, a checkpoint that comes with the package, or a name on the hub.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmt_jax.config import SHIPPED
from rmt_jax.files import refuse_pointer
from rmt_jax.models.io import torch_pickle, weights
from rmt_jax.models.io.lazy import Array
from rmt_jax.models.io.weights import WeightsError

SINGLE = ("model.safetensors", "pytorch_model.bin")
PATTERNS = ["*.json", "*model*.safetensors", "rmt_jax.safetensors", "merges.txt", "*.jinja"]
OLDER = [*PATTERNS, "*_model*.bin"]  # the same weights again where both are there
ASSETS = Path(__file__).resolve().parents[2] / "assets"


def resolve(name: str | Path, revision: str | None = None, only: list[str] | None = None) -> Path:
    """A local folder as it is, a name of `SHIPPED` in the package; anything else is downloaded from
    the hub (weights and json only). NAME@REVISION pins a branch, tag or commit wherever a hub name
    is taken. A `Path` is a folder before it is a name; a text that is both is refused. only:
    patterns of the files that are wanted of a hub name, not all of them."""
    folder = Path(name).expanduser()
    if str(name) in SHIPPED and not (folder.is_dir() and isinstance(name, Path)):
        shipped = ASSETS / str(name)
        if folder.is_dir() and folder.resolve() != shipped:
            raise WeightsError(
                f"{name} is a folder here ({folder.resolve()}) and a checkpoint that comes with the"
                f" package: write ./{name} for the folder, or {shipped} for the other."
            )
        return shipped
    if folder.is_dir():
        return folder
    if folder.is_file() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        found = "a file" if folder.is_file() else "not there"
        raise WeightsError(
            f"{name} is {found}; give the folder that holds {' or '.join(SINGLE)}, a file"
            f" *.gguf, or a name on the hub such as gpt2 or booydar/rmt-gpt2-babilong-qa1."
        )
    from huggingface_hub import snapshot_download

    repository, _, pinned = str(name).partition("@")
    revision = revision or pinned or None
    try:
        wanted = only or PATTERNS
        found = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        if not only and not any(found.glob("model*.safetensors*")):
            snapshot_download(repository, revision=revision, allow_patterns=OLDER)
        return found
    except Exception as error:  # the hub's errors have no common parent below Exception
        raise WeightsError(
            f"There is no folder {name} here, and the hub gave nothing under that name "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Check "
            "the spelling and the network, or download it elsewhere and give the folder; with the "
            f"package come {', '.join(SHIPPED)}."
        ) from error


def argument(folder: Path) -> str:
    """How a command line names a folder, so that no name of `SHIPPED` is meant."""
    return shlex.quote(f"./{folder}" if str(folder) in SHIPPED else str(folder))


def read_tensors(folder: Path) -> dict[str, Array]:
    """All tensors of a folder: one file, or the files that an index names. Those of safetensors
    stay there until they are asked for."""
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return dict(_read_file(folder / name))
        if index.is_file():
            return _read_sharded(index)
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise WeightsError(
        f"{folder} holds no weights: expected {', '.join(SINGLE)} or their .index.json, found: "
        f"{inside}."
    )


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The object in a JSON file of the folder; {} where there is none. Raises WeightsError."""
    file = folder / name
    if not file.is_file():
        return {}
    refuse_pointer(file)
    try:
        said = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON: {error}.") from error
    if not isinstance(said, dict):
        raise WeightsError(f"{file} should hold an object with sizes, not a {type(said).__name__}.")
    # The two names that the field has for the same thing.
    said.setdefault("segment_size", said.get("segment_tokens"))
    return said


def with_defaults(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A Hugging Face config.json leaves out what its class has as default; those are added here.
    Raises WeightsError for values that the class refuses."""
    if not said.get("model_type") or "rmt_jax" in said:
        return said
    from transformers import CONFIG_MAPPING, AutoConfig

    if said["model_type"] not in CONFIG_MAPPING:
        return said
    try:
        whole = AutoConfig.for_model(**said).to_dict()
    except Exception as error:  # a class checks as it likes
        raise WeightsError(
            f"{folder}/config.json can't be a {said['model_type']}: {error}"
        ) from error
    whole.pop("eos_token_id", None)  # generation_config.json may say it, and knows better
    return whole | said


def end_ids(folder: Path, said: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text or a turn, by config.json, else by generation_config.json; the first one
    ends a text."""
    for found in (said, read_config(folder, "generation_config.json")):
        ends = found.get("eos_token_id")
        if ends is not None:
            return tuple(map(int, ends if isinstance(ends, list) else [ends]))
    return ()


def _read_file(file: Path) -> Mapping[str, Array]:
    return torch_pickle.read(file) if file.suffix == ".bin" else weights.open_safetensors(file)


def _read_sharded(index: Path) -> dict[str, Array]:
    refuse_pointer(index)
    try:
        table = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        files = sorted(set(table.values()))
        inside = all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weight files: {error!r}.") from error
    if not inside:
        raise WeightsError(f"{index} names files outside its own folder; it was not followed.")
    tensors: dict[str, Array] = {}
    for name in files:
        tensors |= _read_file(index.parent / name)
    missing = sorted(table.keys() - tensors.keys())
    if missing:
        raise WeightsError(f"{index} promises {missing[0]} and {len(missing) - 1} more not found.")
    return tensors
