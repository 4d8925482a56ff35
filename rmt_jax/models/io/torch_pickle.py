"""Reads `pytorch_model.bin` without torch and without running anything that stands in it.

A torch file is a zip: `NAME/data.pkl` describes the tensors, `NAME/data/0`, … hold their bytes.
A pickle may name any function to be called; ours may name the three kinds below and nothing else.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rmt_jax.files import refuse_pointer
from rmt_jax.models.io.weights import WeightsError

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype(np.float16),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "LongStorage": np.dtype(np.int64),
}


class _Kind(NamedTuple):
    """Stands for torch.XStorage in the pickle."""

    dtype: np.dtype


def read(file: Path) -> dict[str, np.ndarray]:
    """All tensors by name, in their own dtypes (views are copied).

    Raises WeightsError when the file is no torch zip, is damaged, or asks for something that is not
    on the closed list.
    """
    refuse_pointer(file)
    try:
        with zipfile.ZipFile(file) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise WeightsError(f"{file} is compressed inside, which torch.save never does.")
            broken = archive.testzip()
            if broken:
                raise WeightsError(f"{file} is damaged at {broken}; copy or download it again.")
            loaded = _Reader(archive, file).load()
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{file} ({file.stat().st_size:,} bytes) is not a zip as torch.save writes since 1.6: "
            f"{error}. It is cut off, or an older format: save it again with a newer torch."
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{file} can't be read as a torch file: {error!r}.") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in loaded.items()
    ):
        raise WeightsError(
            f"{file} does not hold a plain table of tensors by name; save `model.state_dict()`."
        )
    return dict(loaded)


class _Reader(pickle.Unpickler):
    """An unpickler that knows a closed list of globals."""

    def __init__(self, archive: zipfile.ZipFile, file: Path):
        names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(names) != 1:
            raise WeightsError(f"{file} is a zip, but not torch's: it holds no data.pkl.")
        self.root = names[0].removesuffix("data.pkl")
        self.archive, self.file = archive, file
        self.storages: dict[str, np.ndarray] = {}
        order = f"{self.root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise WeightsError(f"{file} was written on a big-endian machine; save it on another.")
        super().__init__(archive.open(names[0]))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch._utils" and global_name == "_rebuild_tensor_v2":
            return _tensor
        if module_name == "collections" and global_name == "OrderedDict":
            return OrderedDict
        if module_name == "torch" and global_name in STORAGES:
            return _Kind(STORAGES[global_name])
        raise WeightsError(
            f"{self.file} asks to run {module_name}.{global_name}, which no weight file needs: it "
            "was refused and nothing was run. Don't use this file; ask for a safetensors one."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        tag, kind, key, _, count = pid
        if tag != "storage" or not isinstance(kind, _Kind):
            raise WeightsError(f"{self.file} names a storage in a way that torch does not: {pid}.")
        if key not in self.storages:
            data = np.frombuffer(self.archive.read(f"{self.root}data/{key}"), kind.dtype)
            if data.size < count:
                raise WeightsError(
                    f"{self.file}: storage {key} holds {data.size:,} numbers, {count:,} were "
                    "promised; the file is damaged."
                )
            self.storages[key] = data
        return self.storages[key]


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a strided window of a storage, checked against its end."""
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    inside = offset >= 0 and all(n >= 0 for n in shape) and all(s >= 0 for s in strides)
    if not inside or math.prod(shape) > storage.size or (all(shape) and last >= storage.size):
        raise WeightsError(f"A tensor of shape {list(shape)} reaches beyond its storage.")
    window = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [s * storage.itemsize for s in strides], writeable=False
    )
    return np.array(window)
