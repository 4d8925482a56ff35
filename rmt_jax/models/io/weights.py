"""Our own weight files: `weights.safetensors`, one entry a weight, named by its path 'a/b/c'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.config import ConfigError, FrozenDict
from rmt_jax.files import atomic_path, refuse_pointer
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


def save(folder: str | Path, params: Mapping[str, Any], dtype: str = "float32") -> Path:
    """Writes `folder/weights.safetensors` in one piece (a temporary name, then renamed).

    `dtype`: float32, or bfloat16 for half the size.
    """
    import ml_dtypes

    if dtype not in DTYPES:
        raise WeightsError(f"Weights are saved as {' or '.join(DTYPES)}, not {dtype!r}.")
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    # Contiguous: safetensors writes the buffer as it lies, whatever the strides say.
    flat = {
        name: np.ascontiguousarray(np.asarray(value).astype(kind))
        for name, value in flatten(params).items()
    }
    return write(Path(folder) / FILE, flat, {"format": "rmt_jax"})


def write(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    """A safetensors file in one piece, with the rights that any new file gets here. Raises
    WeightsError where it cannot be written (a full disk)."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with atomic_path(file) as hidden:
            save_file(tensors, hidden, metadata)
    except SafetensorError as error:
        raise WeightsError(f"{file} could not be written ({error}): make room, and run the same "
                           "again.") from error  # fmt: skip
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
