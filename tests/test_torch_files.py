"""Files of PyTorch: what runs code, is cut short or reaches beyond its storage is refused."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rmt_jax.models.io import hub, torch_pickle
from rmt_jax.models.io.weights import WeightsError

GOLDEN = Path(__file__).parent / "golden"


class Evil:
    def __reduce__(self):
        return os.system, ("touch HOSTILE",)


def torch_zip(content: bytes, extra: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def golden_bytes() -> bytes:
    return (GOLDEN / "rmt" / "pytorch_model.bin").read_bytes()


@pytest.mark.parametrize(
    "content, sentence",
    [
        (torch_zip(pickle.dumps(Evil())), "asks to run .*system, which no weight file needs"),
        (torch_zip(b"cbuiltins\neval\n."), "builtins.eval"),
        (torch_zip(b"ctorch\nload\n."), "torch.load"),
        (torch_zip(pickle.dumps({"a": 1})), "plain table of tensors"),
        (torch_zip(b"garbage"), "can't be read as a torch file"),
        (torch_zip(b""), "can't be read as a torch file"),
        (b"not a zip", "is not a zip"),
        (b"", "is not a zip"),
    ],
)
def test_hostile_and_broken_torch_files(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=sentence):
        hub.open_source(tmp_path)
    assert not (tmp_path / "HOSTILE").exists()


def test_truncated_and_damaged_torch_files(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(golden_bytes()[:-2000])
    with pytest.raises(WeightsError, match="is not a zip"):
        torch_pickle.read(file)
    data = bytearray(golden_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged at"):
        torch_pickle.read(file)


def test_a_tensor_may_not_reach_beyond_its_storage():
    storage = np.arange(6, dtype=np.float32)
    window = torch_pickle._tensor(storage, 1, (2, 2), (1, 2))
    assert window.tolist() == [[1, 3], [2, 4]]
    for offset, shape, strides in [
        (5, (2,), (1,)),
        (0, (7,), (0,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
    ]:
        with pytest.raises(WeightsError, match="beyond its storage"):
            torch_pickle._tensor(storage, offset, shape, strides)
