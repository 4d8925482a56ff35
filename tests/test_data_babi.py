"""The official parser: every question, and errors that name file and line."""

import io
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rmt_jax.data.babi import files, official
from rmt_jax.data.corpus import documents, pg19
from rmt_jax.data.story import OFFICIAL

pytestmark = pytest.mark.portable

SHARED = os.environ.get("RMT_JAX_SHARED")
BABI = Path(SHARED or "/", "data", "babi", "en-10k")
needs_files = pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED is not set")

TEXT = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel?\thallway\t4
1 Sandra went home.
2 Where is Sandra? \thome\t1
"""


def written(tmp_path, text, name="qa1_single-supporting-fact_train.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_question_with_the_facts_before_it(tmp_path):
    items = files.read(written(tmp_path, TEXT))
    assert [i.answer for i in items] == ["bathroom", "hallway", "home"]
    assert items[1].facts == (
        "Mary moved to the bathroom.",
        "John went to the hallway.",
        "Daniel went back to the hallway.",
    )
    assert items[1].supporting == (2,) and items[1].question == "Where is Daniel?"
    assert [i.story for i in items] == [0, 0, 1] and [i.line for i in items] == [3, 5, 7]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1 A fact.\n3 Another.\n", "line 2: ID 3 follows ID 1"),
        ("2 A fact.\n", "line 1: the file starts with ID 2"),
        ("1 A fact.\nno number\n", "line 2: expected 'ID text'"),
        ("1 A fact.\n2 Where? \t\t1\n", "line 2: a question needs a tab and its answer"),
        ("1 A fact.\n2 Where? \there\t7\n", "line 2: supporting fact '7'"),
        ("1 A fact.\n", "holds no question"),
        ("", "holds no question"),
        (TEXT.replace("?\t", "?  "), "line 5: a tab is missing in 'Where is Daniel"),
        (TEXT.expandtabs(), "line 3: 'Where is Mary?.*bathroom.*1' is a question without a tab"),
        ("1 A fact.\n2 Where? here\t1\n", "line 2: a tab is missing in 'Where\\? here"),
        ("1 A fact.\n2 Where?\there 1\n", "line 2: a tab is missing in 'Where\\?"),
        ("1 A fact.\n2 Where?\n3 Who?\tMary\t1\n", "line 2: 'Where\\?' is a question without"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, what):
    path = written(tmp_path, text)
    with pytest.raises(files.BabiError, match=what) as caught:
        files.read(path)
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    plain, marked = written(tmp_path, TEXT, "a.txt"), tmp_path / "b.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert files.read(marked) == files.read(plain)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(files.BabiError, match="not text in UTF-8"):
        files.read(path)
    with pytest.raises(files.BabiError, match="There is no file"):
        files.read(tmp_path / "missing.txt")


@pytest.mark.parametrize("name", ["qa1_single-supporting-fact_train.txt", "qa1_train.txt"])
def test_layouts(tmp_path, name):
    path = written(tmp_path, TEXT, name)
    assert files.find(tmp_path, "qa1", "train") == path
    with pytest.raises(files.BabiError, match="no test file of qa1"):
        files.find(tmp_path, "qa1", "test")
    with pytest.raises(files.BabiError, match="no folder.*download"):
        files.find(tmp_path / "nowhere", "qa1", "train")


def test_train_and_validation_share_no_story(tmp_path):
    stories = "".join(
        f"1 Mary went to room {i}.\n2 Where is Mary? \troom\t1\n3 Ann went to {i}.\n"
        f"4 Where is Ann? \troom\t3\n"
        for i in range(200)
    )
    written(tmp_path, stories)
    written(tmp_path, TEXT, "qa1_single-supporting-fact_test.txt")
    source = official.Official(str(tmp_path))
    numbers = {s: {i.story for i in source.items("qa1", s)} for s in ("train", "validation")}
    assert not numbers["train"] & numbers["validation"]
    assert len(numbers["train"]) + len(numbers["validation"]) == 200
    assert 24 <= len(numbers["validation"]) <= 56
    assert len(source.items("qa1", "test")) == 3
    size = len(source.items("qa1", "train"))
    lap = [source.story("qa1", "train", 0, i, OFFICIAL) for i in range(size)]
    assert len(set(lap)) == size  # a pass visits every question once
    assert lap != [source.story("qa1", "train", 0, size + i, OFFICIAL) for i in range(size)]
    with pytest.raises(ValueError, match="none of .* official questions"):
        source.story("qa1", "train", 0, 0, OFFICIAL._replace(max_facts=0))


def test_a_file_of_one_story_leaves_a_side_empty(tmp_path):
    written(tmp_path, "1 Mary went home.\n2 Where is Mary? \thome\t1\n")
    source = official.Official(str(tmp_path))
    [empty] = (split for split in ("train", "validation") if not source.items("qa1", split))
    with pytest.raises(ValueError, match=f"no story for {empty}.*few stories.*download"):
        source.story("qa1", empty, 0, 0, OFFICIAL)


def test_no_question_of_the_same_facts_stands_on_both_sides(tmp_path):
    """Sixty stories that begin in three ways: most of their first questions are the same."""
    places = ("garden", "office", "kitchen")
    text = "".join(
        f"1 Mary went to the {places[n % 3]}.\n2 Where is Mary? \t{places[n % 3]}\t1\n"
        f"3 John took apple {n}.\n4 Where is John? \t{places[n % 3]}\t3\n"
        for n in range(60)
    )
    written(tmp_path, text)
    source = official.Official(str(tmp_path))
    train, other = (source.items("qa1", split) for split in ("train", "validation"))
    assert {i.facts for i in train}.isdisjoint(i.facts for i in other)
    assert len(train) + len(other) < 120 and {i.question for i in other} == {"Where is John?"}


def test_official_stories_are_asked_what_their_facts_say(tmp_path):
    """After every fact, and not only where the files ask."""
    places = [("office", "garden")[n % 2] for n in range(2, 11)]
    walks = "".join(f"{n} John went to the {p}.\n" for n, p in enumerate(places, start=2))
    asked = "11 Where is John? \toffice\t10\n12 Ann slept.\n13 Where is Mary? \tkitchen\t1\n"
    written(tmp_path, f"1 Mary moved to the kitchen.\n{walks}{asked}")
    source = official.Official(str(tmp_path))
    split = "train" if source.items("qa1", "train") else "validation"
    options = OFFICIAL._replace(question_rate=1.0)
    stories = [source.story("qa1", split, 0, i, options) for i in range(20)]
    followed = [story for story in stories if len(story.facts) == 10]
    asks = {one for story in followed for one in story.intermediate_questions}
    assert {one.after_fact for one in asks} == {*range(9)}  # what the last one says is asked last
    for number, question, answer in asks:
        assert question in ("Where is Mary?", "Where is John?")
        assert answer == ("kitchen" if "Mary" in question else places[number - 1])
    # 'Ann slept.' is beyond the simulator: what the file asks earlier is all there is.
    beyond = [story for story in stories if len(story.facts) == 11]
    assert beyond and len(beyond) < len(stories)
    for story in beyond:
        assert story.intermediate_questions == ((9, "Where is John?", "office"),)


def test_what_validation_asks_is_not_asked_on_the_way_in_training(tmp_path):
    """Stories that begin alike, of which those of validation are asked after that beginning."""
    begin = ("Mary went to the garden.", "John went to the office.")
    places = ("kitchen", "hallway", "bedroom", "bathroom")
    text = ""
    for number in range(64):
        ends = (places[number // 16], places[number // 4 % 4], places[number % 4])
        facts = (*begin, *(f"Daniel went to the {place}." for place in ends))
        lines = [*begin, *facts[2:], f"Where is Daniel? \t{ends[-1]}\t5"]
        if documents.split_of_story(facts) != "train":
            lines.insert(2, "Where is Mary? \tgarden\t1")
        text += "".join(f"{n} {line}\n" for n, line in enumerate(lines, start=1))
    written(tmp_path, text)
    source = official.Official(str(tmp_path))
    assert (begin, "Where is Mary?") in {
        (i.facts, i.question) for i in source.items("qa1", "validation")
    }

    def asked(split):
        made = (
            source.story("qa1", split, 0, i, OFFICIAL._replace(question_rate=1.0))
            for i in range(60)
        )
        return {
            (story.facts[: one.after_fact + 1], one.question)
            for story in made
            for one in story.intermediate_questions
        }

    assert {(begin, "Where is Mary?"), (begin, "Where is John?")} <= asked("validation")
    assert (begin, "Where is John?") in asked("train")
    assert (begin, "Where is Mary?") not in asked("train")


def test_official_stories_can_bear_new_names(tmp_path):
    written(tmp_path, TEXT.replace("Sandra went home", "Sandra went to the garden"))
    source = official.Official(str(tmp_path))
    split = "train" if source.items("qa1", "train") else "validation"
    options = OFFICIAL._replace(new_names=("people", "places"))
    story = source.story("qa1", split, 0, 0, options)
    plain = source.story("qa1", split, 0, 0, OFFICIAL)
    assert story.supporting == plain.supporting and story.facts != plain.facts
    assert "Mary" not in " ".join(story.facts)
    assert story.question.split()[-1].rstrip("?") in " ".join(story.facts)


def test_official_facts_need_a_folder():
    with pytest.raises(files.BabiError, match="babi_dir"):
        official.Official("")


def test_evaluation_questions_are_the_test_files_in_order(tmp_path):
    path = written(tmp_path, TEXT, "qa1_single-supporting-fact_test.txt")
    assert [i.answer for i in official.evaluation_order(path, 0)] == ["bathroom", "hallway", "home"]
    assert [i.answer for i in official.evaluation_order(path, 16)] == ["bathroom", "home"]


@needs_files
def test_the_official_files_are_whole():
    for number in range(1, 21):
        items = files.read(files.find(BABI, f"qa{number}", "train"))
        assert len(items) == (1925 if number == 3 else 10_000)


def _archive(folder="tasks_1-20_v1-2/en-10k"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        info = tarfile.TarInfo(f"{folder}/qa1_train.txt")
        info.size = len(TEXT)
        tar.addfile(info, io.BytesIO(TEXT.encode()))
    return data.getvalue()


def test_download_checks_and_unpacks(tmp_path):
    source = tmp_path / "babi.tar.gz"
    source.write_bytes(_archive())
    with pytest.raises(files.BabiError, match="expected 00"):
        files.download(tmp_path / "a", sha256="00", address=source.as_uri())
    folder = files.download(tmp_path / "a", address=source.as_uri())
    assert len(files.read(folder / "qa1_train.txt")) == 3
    source.write_bytes(b"not an archive")
    with pytest.raises(files.BabiError, match="14 bytes that cannot be unpacked"):
        files.download(tmp_path / "b", address=source.as_uri())
    assert not list((tmp_path / "b").iterdir())  # nothing half done
    source.unlink()
    with pytest.raises(files.BabiError, match="No address gives the files.*copy the folder"):
        files.download(tmp_path / "b", address=source.as_uri())


@pytest.mark.parametrize(
    ("answer", "length", "told"),
    [
        (_archive()[:200], 0, "cannot be unpacked"),
        (_archive()[:200], 5000, "the answer breaks off"),
        (b"<html>Log in to the network</html>", 0, "34 bytes that cannot be unpacked"),
        (b"", 0, "0 bytes that cannot be unpacked"),
    ],
    ids=["cut gzip", "cut answer", "page", "nothing"],
)
def test_what_one_address_spoils_the_other_gives(tmp_path, monkeypatch, answer, length, told):
    class Spoils(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(length or len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Spoils)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    mirror = tmp_path / "babi.tar.gz"
    mirror.write_bytes(_archive())
    monkeypatch.setattr(files, "ADDRESS", f"http://127.0.0.1:{server.server_port}/babi")
    monkeypatch.setattr(files, "MIRROR", mirror.as_uri())
    try:
        with pytest.raises(files.BabiError, match=f"{told}.*download.*on a machine with network"):
            files.download(tmp_path / "a", address=files.ADDRESS)
        assert not list((tmp_path / "a").iterdir())
        assert len(files.read(files.download(tmp_path / "a") / "qa1_train.txt")) == 3
        with pytest.raises(pg19.FetchError, match="does not answer|answers with no list of books"):
            pg19.fetch(tmp_path / "books", bucket=files.ADDRESS)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
