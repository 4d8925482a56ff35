"""Published evaluation sets: both layouts, long records, and files that are broken."""

import json

import pytest

from rmt_jax.data import published

ROWS = [{"input": f"Text {i}. " * 1000, "question": f"Q{i}?", "target": str(i)} for i in range(5)]


def put(folder, text, name="qa1/4k.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("base", ["", "data/"])
@pytest.mark.parametrize(
    "text",
    [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\n".join(map(json.dumps, ROWS)) + "\n"],
)
@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json(tmp_path, monkeypatch, base, text, block, mark):
    monkeypatch.setattr(published, "_BLOCK", block)
    put(tmp_path, mark + text, f"{base}qa1/4k.json")
    assert list(published.read(tmp_path, "qa1", "4k")) == ROWS


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "data" / "4k").mkdir(parents=True)
    path = tmp_path / "data" / "4k" / "qa1-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert list(published.read(tmp_path, "qa1", "4k")) == ROWS
    path.write_bytes(b"no parquet")
    with pytest.raises(published.PublishedError, match="not a parquet file"):
        list(published.read(tmp_path, "qa1", "4k"))


def parts(folder, total=3, name="4k/qa1"):
    """ROWS over so many parquet files."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [folder / f"{name}-{n:05d}-of-{total:05d}.parquet" for n in range(total)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        share = slice(len(ROWS) * number // total, len(ROWS) * (number + 1) // total)
        parquet.write_table(pa.Table.from_pylist(ROWS[share]), path)
    return paths


def test_parquet_in_parts(tmp_path):
    paths = parts(tmp_path)
    assert list(published.read(tmp_path, "qa1", "4k")) == ROWS
    assert published.locate(tmp_path, "qa1", "4k") == paths
    paths[1].rename(tmp_path / "kept")
    with pytest.raises(published.PublishedError, match="2 of the 3 files of qa1 at 4k.*r 00001"):
        list(published.read(tmp_path, "qa1", "4k"))
    (tmp_path / "kept").rename(paths[1])
    parts(tmp_path, 1)
    with pytest.raises(published.PublishedError, match="more than one division into files"):
        list(published.read(tmp_path, "qa1", "4k"))


def test_parquet_in_parts_on_the_hub(tmp_path, monkeypatch):
    """All parts are fetched, of this length alone: 128k/qa1 ends with 8k/qa1."""
    import huggingface_hub

    parts(tmp_path, name="data/8k/qa1")
    others = ["data/128k/qa1-00000-of-00001.parquet", "data/8k/qa10-00000-of-00001.parquet"]
    names = [*others, *(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.parquet"))]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: tmp_path / name)
    assert list(published.read("RMT-team/babilong", "qa1", "8k")) == ROWS
    assert published.locate("RMT-team/babilong", "qa1", "128k") == [tmp_path / others[0]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (json.dumps(ROWS)[:-1], "does not end"),
        (json.dumps(ROWS)[:-30], "record 4: not JSON"),
        ("", "holds no record"),
        ("[]", "holds no record"),
        ('[{"input": "x"}]', "record 0: no question, target"),
        ("[3]", "record 0: no input"),
        ('[{"input": "x", "question": "x", "target": null}]', "record 0: target is null, and no"),
        ('[{"input": ["x"], "question": "x", "target": 3}]', r"input is ..x.., and no text"),
    ],
)
def test_broken_files(tmp_path, text, what):
    with pytest.raises(published.PublishedError, match=what):
        list(published.read(put(tmp_path, text), "qa1", "4k"))


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(published.PublishedError, match="holds neither qa2/4k.json"):
        published.locate(put(tmp_path, "[]"), "qa2", "4k")
    with pytest.raises(published.PublishedError, match="no folder '/a/b/c'"):
        published.locate("/a/b/c", "qa1", "4k")
    with pytest.raises(ValueError, match="no such task"):
        published.locate(tmp_path, "qa77", "4k")
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with pytest.raises(published.PublishedError, match="hf download.*and name DIR"):
        published.locate("RMT-team/babilong", "qa1", "4k")
