"""Our own weight files: `weights.safetensors`, one entry a weight, named by its path 'a/b/c'."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.config import ConfigError, FrozenDict
from rmt_jax.files import atomic_path, refuse_pointer
from rmt_jax.models.io import lazy
from rmt_jax.models.io.lazy import Index, LazyArray

FILE = "weights.safetensors"
DTYPES = ("float32", "bfloat16")


class WeightsError(ConfigError):
    """A weight file that can't be used; the message says what was found and what to do."""


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts of arrays -> {'a/b/c': array}, sorted by name."""
    flat: dict[str, Any] = {}
    for key in sorted(params):
        value, name = params[key], f"{prefix}{key}"
        flat |= flatten(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        place = params
        for key in path:
            place = place.setdefault(key, {})
        place[leaf] = value
    return params


Blocks = Callable[[str, Any], Iterator[np.ndarray]]


def save(
    folder: str | Path,
    params: Mapping[str, Any],
    dtype: str = "float32",
    blocks: Blocks = lambda name, value: lazy.blocks(value),
) -> Path:
    """Writes `folder/weights.safetensors` in one piece (a temporary name, then renamed).

    `dtype`: float32, or bfloat16 for half the size. blocks: as of `write`.
    """
    return write(Path(folder) / FILE, flatten(params), {"format": "rmt_jax"}, dtype, blocks)


def write(
    file: Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    dtype: str = "",
    blocks: Blocks = lambda name, value: lazy.blocks(value),
) -> Path:
    """A safetensors file in one piece, with the rights that any new file gets here, of which some
    rows are in memory at a time. (The library writes what is there as a whole.)

    Args:
      tensors: by name: numpy, lazy, on devices.
      dtype: float32 or bfloat16 for all of them; empty: each its own.
      blocks: the rows of a tensor one after the other; called in the order of the names, where
        all have one dtype.

    Raises WeightsError where it cannot be written (a full disk).
    """
    import ml_dtypes

    if dtype and dtype not in DTYPES:
        raise WeightsError(f"Weights are saved as {' or '.join(DTYPES)}, not {dtype!r}.")
    forced = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
    kinds = {name: forced.get(dtype, np.dtype(value.dtype)) for name, value in tensors.items()}
    known = {kind: name for name, kind in KINDS.items()}
    # The widest first, so that each begins at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    head, end = dict[str, Any](__metadata__=dict(metadata)) if metadata else {}, 0
    for name in order:
        start, end = end, end + kinds[name].itemsize * tensors[name].size
        shape = [int(size) for size in tensors[name].shape]
        kind = known[kinds[name].name]
        head[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(file) as hidden:
        try:
            with open(hidden, "wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    for block in blocks(name, tensors[name]):
                        own = np.ascontiguousarray(block, kinds[name])
                        out.write(own.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise WeightsError(
                f"{file} could not be written ({error}): make room, and run the same again."
            ) from error
    return file


def load(file: str | Path) -> dict[str, Any]:
    """Nested dicts of float32 numpy arrays from a file that `save` wrote (or its folder).

    Raises WeightsError when the file is missing, cut off or not ours.
    """
    return unflatten({k: np.asarray(v, np.float32) for k, v in open_own(file).items()})


def open_own(file: str | Path) -> dict[str, LazyArray]:
    """The same by name, as 'a/b/c', and nothing of it read yet."""
    file = Path(file)
    file = file / FILE if file.is_dir() else file
    return {k: v.astype(np.float32) for k, v in open_safetensors(file).items()}


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of one file, in their own dtypes. Raises WeightsError."""
    return {name: np.asarray(value) for name, value in open_safetensors(file).items()}


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise WeightsError(f"There is no weight file {file}; name a folder that holds one.")
    refuse_pointer(file)


# As safetensors names what numpy and ml_dtypes have.
KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def open_safetensors(file: Path) -> dict[str, LazyArray]:
    """The tensors of one file, in their own dtypes; nothing but the head of the file is read yet.
    Raises WeightsError."""
    import ml_dtypes  # noqa: F401  (names bfloat16)
    from safetensors import SafetensorError, safe_open

    _check_file(file)
    try:
        opened: Any = safe_open(file, "np")
        cuts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{file} ({file.stat().st_size:,} bytes) can't be read as safetensors: {error}. "
            "It is cut off or something else; copy or download it again."
        ) from error

    def lazy(name: str, cut: Any) -> LazyArray:
        shape, kind = cut.get_shape(), KINDS.get(cut.get_dtype())
        if kind is None:
            raise WeightsError(
                f"{file}: {name} is stored as {cut.get_dtype()}, which can't be loaded; convert it"
                " to BF16 or F32."
            )

        def read(index: Index) -> np.ndarray:
            return cut[index] if shape else opened.get_tensor(name)

        return LazyArray(shape, kind, read)

    return {name: lazy(name, cut) for name, cut in cuts.items()}


def adopt(
    params: Mapping[str, Any],
    loaded: Mapping[str, Any],
    what: str,
    theirs: Mapping[str, str] = FrozenDict(),
) -> dict[str, Any]:
    """`loaded`, after checking that it has exactly the names and shapes of `params`.

    `params` may be arrays or `jax.ShapeDtypeStruct`s. Raises WeightsError with the names, and
    those that others have for them (`theirs`).
    """
    wanted, found = flatten(params), flatten(loaded)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise WeightsError(
            f"{what} does not hold this model's weights. Missing: {_list(missing, theirs)}. "
            f"Left over: {_list(extra, theirs)}. The config beside it must be that of the run that"
            " made it."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise WeightsError(
                f"{what}: {name} has shape {list(value.shape)}, but this config makes "
                f"{list(wanted[name].shape)}; the sizes in the config differ from the weights'."
            )
    return unflatten(found)


def _list(names: list[str], theirs: Mapping[str, str]) -> str:
    both = [f"{name} ({theirs[name]})" if name in theirs else name for name in names[:8]]
    shown = ", ".join(both) or "nothing"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
