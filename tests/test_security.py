"""What comes from others (archives, checkpoints, data, hub names) can do nothing but be read."""

import ast
import io
import re
import tarfile
from pathlib import Path

import pytest

from rmt_jax.config import Data
from rmt_jax.data import published, tokenizer
from rmt_jax.data.babi import files
from rmt_jax.evaluation import sources
from rmt_jax.models.io import folder as folders

ROOT = Path(__file__).parents[1]


def archive(path: Path, *members: tarfile.TarInfo) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            data = b"written" if member.isreg() else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.as_uri()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o777
    return info


INSIDE = "tasks_1-20_v1-2/en-10k/qa1_x_train.txt"


@pytest.mark.parametrize(
    "hostile",
    [
        [member("../../escaped.txt")],
        [member("{outside}/escaped.txt")],  # an absolute path
        [member("way", tarfile.SYMTYPE, "../.."), member("way/escaped.txt")],
        [member("way", tarfile.SYMTYPE, "{outside}"), member("way/escaped.txt")],
        [member("hard", tarfile.LNKTYPE, "../../secret.txt")],
        [member("device", tarfile.CHRTYPE)],
    ],
    ids=["parent", "absolute", "link up", "link away", "hard link", "device"],
)
def test_an_archive_writes_nowhere_but_in_its_folder(tmp_path, hostile):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    for one in hostile:
        one.name = one.name.replace("{outside}", str(outside))
        one.linkname = one.linkname.replace("{outside}", str(outside))
    address = archive(tmp_path / "bad.tar.gz", member(INSIDE), *hostile)
    folder = outside / "data"
    before = sorted(tmp_path.rglob("*"))
    try:
        files.download(folder, address=address)
    except files.BabiError as error:
        assert "cannot be unpacked" in str(error)
        made = set()
    else:  # a leading slash is dropped: then the file lies in the folder
        made = {f for f in folder.rglob("*")}
        assert not any(f.is_symlink() for f in made)
    assert sorted(tmp_path.rglob("*")) == sorted({*before, folder, *made})


# Where such a name stands for something else, or is the closed list itself.
ALLOWED = {("torch_pickle.py", "pickle")}


def test_the_code_runs_nothing_that_it_reads():
    """No eval, exec, pickle, marshal or remote code: read from the syntax of every file."""
    for file in (ROOT / "rmt_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & {"eval", "exec", "compile", "__import__"}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                names = set(modules) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
            elif isinstance(node, ast.keyword) and not isinstance(node.value, ast.Constant):
                names = {node.arg} & {"allow_pickle", "trust_remote_code"}
            elif isinstance(node, ast.keyword) and node.value.value:  # pyright: ignore
                names = {node.arg} & {"allow_pickle", "trust_remote_code"}
            assert not {n for n in names if (file.name, n) not in ALLOWED}, (file, node.lineno)


def test_hub_names_can_be_pinned(monkeypatch, tmp_path):
    """NAME@REVISION reaches the hub's own functions, for weights, tokenizers and data."""
    import huggingface_hub

    asked = []

    def snapshot(name, revision=None, **_):
        asked.append((name, revision))
        return tmp_path

    class Api:
        def list_repo_files(self, name, revision=None, **_):
            asked.append((name, revision))
            return ["data/qa1/4k.json"]

    def file(name, _, revision=None, **__):
        asked.append((name, revision))
        return tmp_path / "4k.json"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    folders.resolve("us/model@v1")
    folders.resolve("us/model", "0abc")
    folders.resolve("us/model")
    assert set(asked) == {("us/model", "v1"), ("us/model", "0abc"), ("us/model", None)}
    asked.clear()
    for name in ("us/words@v2", "us/words"):
        with pytest.raises(ValueError, match=re.escape(f"no tokenizer '{name}'")):
            tokenizer.load(name)
    assert asked == [("us/words", "v2"), ("us/words", None)]
    asked.clear()
    assert published.locate("us/data@v3", "qa1", "4k") == [tmp_path / "4k.json"]
    assert asked == [("us/data", "v3")] * 2
    assert isinstance(sources.open_source("us/data@v3", FakeModel()), sources.Published)


class FakeModel:
    class config:
        data = Data()
