"""prepare: JSON and TFDS, in parts, resumable, nothing half-written."""

import json
import os
from pathlib import Path

import pytest
from commands import exit_code

from rmt_jax import prepare
from rmt_jax.data import records as samples
from rmt_jax.data.babi import files

SHARED = os.environ.get("RMT_JAX_SHARED")


def run(out, *more):
    words = ["--out", str(out), "--tasks", "qa1,qa4", "--samples", "6", *more]
    return exit_code(prepare.main, words)


def test_json_in_the_official_layout(tmp_path, capsys):
    assert run(tmp_path, "--format", "json", "--lengths", "0k,1k") == 0
    rows = json.loads((tmp_path / "qa1" / "1k.json").read_text())
    assert len(rows) == 6 and list(rows[0]) == ["input", "question", "target"]
    assert rows[0]["question"].startswith("Where is ") and "." in rows[0]["input"]
    assert not (tmp_path / ".parts").exists()
    before = (tmp_path / "qa1" / "1k.json").stat().st_mtime_ns
    assert run(tmp_path, "--format", "json", "--lengths", "1k") == 0
    assert "is there already" in capsys.readouterr().out
    assert (tmp_path / "qa1" / "1k.json").stat().st_mtime_ns == before
    assert run(tmp_path, "--format", "json", "--lengths", "1k", "--seed", "3") == 2
    assert "was made with seed 0: choose another --out" in capsys.readouterr().err


def test_blanks_in_lists_of_names(tmp_path):
    words = ["--out", str(tmp_path), "--format", "json", "--samples", "1", "--tasks", "qa1, qa4 "]
    assert exit_code(prepare.main, [*words, "--lengths", "0k, 1k"]) == 0
    made = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("qa*/*"))
    assert made == ["qa1/0k.json", "qa1/1k.json", "qa4/0k.json", "qa4/1k.json"]


def test_shards_in_any_order_give_the_same(tmp_path):
    assert run(tmp_path / "a", "--format", "json", "--lengths", "1k") == 0
    more = ("--format", "json", "--lengths", "1k", "--num_shards", "3")
    for shard in (2, 0):
        assert run(tmp_path / "b", *more, "--shard_index", str(shard)) == 0
        assert not (tmp_path / "b" / "qa1").exists()
    assert run(tmp_path / "b", *more) == 0  # makes what is missing, joins
    for task in ("qa1", "qa4"):
        name = Path(task, "1k.json")
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_processes_of_a_cluster_make_a_part_each(tmp_path, monkeypatch, capsys):
    make = ("--format", "json", "--tasks", "qa1", "--lengths", "0k", "--samples", "5")
    ruler = ("--format", "ruler", "--tasks", "vt,cwe", "--lengths", "2k", "--samples", "1")
    assert run(tmp_path / "whole", *make) == 0
    monkeypatch.setenv("COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("NUM_PROCESSES", "2")
    for process in "10":
        monkeypatch.setenv("PROCESS_ID", process)
        assert run(tmp_path / "parts", *make) == 0
        assert f"part {process} of 2 is made" in capsys.readouterr().out
        assert run(tmp_path / "ruler", *ruler) == 0
        assert capsys.readouterr().out.count(".jsonl") == 1  # each its own task
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(name)
    assert run(tmp_path / "parts", *make, "--num_shards", "2") == 0
    file = Path("qa1") / "0k.json"
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_join_takes_its_own_parts_and_no_others(tmp_path, capsys):
    make = ("--format", "json", "--lengths")
    assert run(tmp_path, *make, "1k", "--num_shards", "2", "--shard_index", "0") == 0
    assert run(tmp_path, *make, "0k", "--num_shards", "4", "--shard_index", "1") == 0
    assert "without --shard_index" in capsys.readouterr().out
    assert run(tmp_path, *make, "0k") == 0  # in one part: the quarter that is there is none of it
    assert len(json.loads((tmp_path / "qa1" / "0k.json").read_text())) == 6
    left = sorted(p.name for p in (tmp_path / ".parts").rglob("qa1-*"))
    assert left == ["qa1-0k-00001-of-00004.jsonl", "qa1-1k-00000-of-00002.jsonl"]


def test_the_last_of_many_machines_joins_nothing(tmp_path):
    make = ("--format", "json", "--lengths", "0k", "--num_shards", "2", "--shard_index")
    for shard in "01":
        assert run(tmp_path, *make, shard) == 0
    assert not (tmp_path / "qa1").exists()


def test_what_was_removed_is_made_again(tmp_path):
    make = ("--format", "json", "--lengths", "0k", "--seed")
    assert run(tmp_path, *make, "0") == 0
    for task in ("qa1", "qa4"):
        (tmp_path / task / "0k.json").unlink()
    assert run(tmp_path, *make, "1") == 0  # of another seed, too
    assert len(json.loads((tmp_path / "qa1" / "0k.json").read_text())) == 6


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    made = []
    real = samples.records

    def stops(recipe, task, which):
        for record in real(recipe, task, which):
            if len(made) == 4:
                raise KeyboardInterrupt
            made.append(record)
            yield record

    monkeypatch.setattr(prepare, "records", stops)
    more = ("--format", "json", "--lengths", "0k", "--num_shards", "3")
    assert run(tmp_path, *more) == 130
    parts = sorted(p.name for p in (tmp_path / ".parts").rglob("*") if p.is_file())
    assert parts == ["qa1-0k-00000-of-00003.jsonl", "qa1-0k-00001-of-00003.jsonl"]
    seen = []
    monkeypatch.setattr(prepare, "records", lambda r, t, w: (seen.append((t, w)), real(r, t, w))[1])
    assert run(tmp_path, *more) == 0
    assert ("qa1", range(0, 2)) not in seen and ("qa1", range(4, 6)) in seen


def test_official_rows_are_rebuilt(tmp_path, capfd):
    text = "".join(
        f"1 Mary went to the {a}.\n2 John went to the {b}.\n3 Where is Mary? \t{a}\t1\n"
        for a, b in (("garden", "office"), ("office", "kitchen"), ("kitchen", "garden"))
    )
    babi_dir = tmp_path / "en-10k"
    babi_dir.mkdir()
    (babi_dir / "qa1_single-supporting-fact_test.txt").write_text(text)
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--format", "json", "--tasks", "qa1", "--lengths", "0k,1k"]
    assert exit_code(prepare.main, [*arguments, "--babi_dir", str(babi_dir)]) == 0
    said = "fewer questions than the 1,000 asked for: qa1 0k 3, qa1 1k 3"
    assert said in capfd.readouterr().err
    for length in ("0k", "1k"):
        rows = json.loads((out / "qa1" / f"{length}.json").read_text())
        assert [row["target"] for row in rows] == ["garden", "office", "kitchen"]
        assert all(row["question"] == "Where is Mary?" for row in rows)
    first = json.loads((out / "qa1" / "0k.json").read_text())[0]["input"]
    assert first == "Mary went to the garden. John went to the office."


@pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED is not set")
def test_rows_of_a_length_leave_out_long_stories(tmp_path):
    folder = Path(SHARED, "data/babi/en-10k")
    recipe = samples.Recipe("1k", ("qa3",), 30, 0, "official", str(folder), "train")
    rows = list(samples.records(recipe, "qa3", range(30)))
    kept = [i for i in files.read(files.find(folder, "qa3", "train")) if len(i.facts) <= 700 // 8]
    assert [(r["question"], r["target"]) for r in rows] == [
        (i.question, i.answer) for i in kept[:30]
    ]


def test_tfds_is_read_without_tensorflow(tmp_path):
    import sys

    import tensorflow_datasets as tfds

    assert run(tmp_path, "--lengths", "1k") == 0
    source = tfds.data_source("babilong/1k", split="qa4", data_dir=str(tmp_path))
    assert len(source) == 6 and [row["index"] for row in source] == list(range(6))
    assert source[0]["question"].decode().startswith("What is")
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--lengths", "3x"), "Unknown length '3x'"),
        (("--tasks", "qa11"), "no simulator"),
        (("--tasks", "qa99"), "'qa99', but there is no such task"),
        (("--background", "/nowhere"), "no folder '/nowhere'"),
        (("--tokenizer", "/nowhere/t"), "no tokenizer '/nowhere/t'"),
        (("--babi_dir", "/nowhere"), "no folder '/nowhere' with bAbI files"),
        (("--num_shards", "2", "--shard_index", "2"), "not below 2"),
        (("--num_shards", "0"), "--num_shards is 0: the work is cut into 1 part or more"),
        (("--seed", "-1"), "--seed: a seed is a whole number between 0 and 2147483647"),
        (("--lengths", " , "), "--lengths names nothing to make"),
    ],
)
def test_bad_requests_are_sentences(tmp_path, capsys, arguments, what, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (
        exit_code(prepare.main, ["--out", str(tmp_path / "o"), "--format", "json", *arguments]) == 2
    )
    assert what in capsys.readouterr().err
    left = [p for p in (tmp_path / "o").rglob("*") if p.is_file()]
    assert left == []


def test_background_that_has_no_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "books").mkdir()
    text = "It was a dark night, and the wind howled around the old stones of the tower. " * 40
    (tmp_path / "books" / "a.txt").write_text(text)
    words = ["--out", str(tmp_path / "out"), "--format", "json", "--tasks", "qa1", "--samples", "2"]
    words += ["--lengths", "1k", "--background", str(tmp_path / "books"), "--background_split"]
    assert exit_code(prepare.main, [*words, "all"]) == 0
    rows = json.loads((tmp_path / "out" / "qa1" / "1k.json").read_text())
    assert len(rows) == 2 and all("dark night" in row["input"] for row in rows)
    assert exit_code(prepare.main, [*words, "train"]) == 2  # made with something else


def test_beam_that_is_not_there_is_named_with_its_extra(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path / "out", "--beam") == 2
    assert "--beam needs Apache Beam: pip install 'rmt_jax[beam]'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_builder_makes_samples_itself(tmp_path):
    from rmt_jax.data import tfds_builder

    recipe = samples.Recipe("0k", ("qa1",), samples=3)
    builder = tfds_builder.build(recipe, tmp_path)
    assert len(builder.as_data_source(split="qa1")) == 3


def test_pg19_keeps_its_own_splits(tmp_path, capsys):
    import base64
    import hashlib
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from urllib.parse import parse_qs, unquote, urlparse

    from rmt_jax.data.corpus import documents as sources
    from rmt_jax.data.corpus import pg19

    books = {f"{split}/{i}.txt": f"Book {i} of {split}." for split in pg19.SPLITS for i in (1, 2)}

    class Bucket(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlparse(self.path)
            name = unquote(url.path).removeprefix("/o/")
            if name in books:
                answer = books[name].encode()
            else:
                query = parse_qs(url.query)
                found = [n for n in books if n.startswith(query["prefix"][0])]
                page = int(query.get("pageToken", ["0"])[0])  # a book a page
                digest = hashlib.md5(books[found[page]].encode()).digest()
                item = {"name": found[page], "md5Hash": base64.b64encode(digest).decode()}
                told = {"items": [item]} | ({"nextPageToken": "1"} if page == 0 else {})
                answer = json.dumps(told).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        folder = pg19.fetch(tmp_path / "pg19", bucket=f"http://127.0.0.1:{server.server_port}/o")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(list(folder.glob("*.txt"))) == 6
    keys = {name: key for name, key, _ in sources.documents(str(folder))}
    assert keys["test-1.txt"] == "split:test" and sources.split_of("split:test") == "test"
    with pytest.raises(pg19.FetchError, match="does not answer.*By hand"):
        pg19.fetch(tmp_path / "other", bucket=f"http://127.0.0.1:{server.server_port}/o")
