"""Where questions come from: files of others, lengths counted by others, what has changed since."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tiny_run

from rmt_jax import cli
from rmt_jax.evaluation import answer_log, evaluate, sources


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_run.api.load(tiny_run.save(tmp_path_factory.mktemp("run"), tiny_run.config()))


def test_babilong_files(model, tmp_path):
    rows = [
        {"input": f"Rain fell. Mary went to the {p}.", "question": "Where is Mary? ", "target": p}
        for p in ("garden", "office", "kitchen")
    ]
    (tmp_path / "qa1").mkdir()
    (tmp_path / "qa1" / "0k.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "qa1").mkdir(parents=True)
    (tmp_path / "data" / "qa1" / "1k.json").write_text("\n".join(map(json.dumps, rows)))
    source = sources.open_source(str(tmp_path), model)
    assert source.count("qa1", "0k", 100) == 3 and source.count("qa1", "1k", 2) == 2
    assert [q.target for q in source.ask("qa1", "1k", range(0, 2))] == ["garden", "office"]
    assert [q.target for q in source.ask("qa1", "1k", range(2, 3))] == ["kitchen"]
    assert source.ask("qa1", "0k", range(1))[0].encoded.context.tolist() == tiny_run.words().encode(
        " Rain fell. Mary went to the garden."
    )
    found = evaluate(model, source=source, tasks=["qa1"], lengths=["0k"], samples=9, progress=False)
    assert found[0].samples == 3
    with pytest.raises(sources.QuestionError, match="holds neither qa2/4k.json"):
        source.count("qa2", "4k", 1)
    (tmp_path / "qa1" / "2k.json").write_text('[{"input": "x"}]')
    with pytest.raises(sources.QuestionError, match="record 0: no question"):
        source.ask("qa1", "2k", range(1))


def test_lengths_counted_by_another_tokenizer_read_the_same_text(model):
    class Letters:
        """A tokenizer of which a token is a letter."""

        name, vocab_size, end, pad, answer = "letters", 300, 1, 0, 2

        def sentence(self, text):
            return tuple(ord(c) for c in " " + text)

        def decode(self, ids):
            return "".join(map(chr, ids))

    data = dataclasses.replace(model.config.data, background="none")
    source = sources.Generated(model, data=data, lengths_by=Letters())
    q = source.ask("qa1", "0k", range(1))[0]
    text = tiny_run.words().decode(q.encoded.context)
    assert len(text) + len(q.question) + 1 == q.characters and text.startswith(" ")


def test_lengths_in_segments_are_of_the_models_whoever_counts(model):
    coarse = SimpleNamespace(name="other")  # never asked
    one = sources.Generated(model)
    other = sources.Generated(model, data=one.data)
    other.counter = coarse
    first, second = (s.ask("qa1", "3s", range(1))[0] for s in (one, other))
    assert first.encoded.context.tolist() == second.encoded.context.tolist()


def test_files_that_changed_are_asked_anew_and_nothing_is_lost(model, tmp_path, monkeypatch):
    out, read = tmp_path / "out", []

    def ask(folder, place):
        (folder / "qa1").mkdir(parents=True, exist_ok=True)
        row = {"input": f"Mary went to the {place}.", "question": "Where is Mary?"}
        (folder / "qa1" / "0k.json").write_text(json.dumps([row | {"target": place}]))
        source = sources.open_source(str(folder), model)
        asked = source.ask
        monkeypatch.setattr(source, "ask", lambda *a, **k: read.append(place) or asked(*a, **k))
        what = dict(source=source, tasks=["qa1"], lengths=["0k"], out=out, progress=False)
        evaluate(model, **what)

    def kept():  # the last in place, what stepped aside before it
        files = sorted((out / "answers").iterdir())
        return [json.loads(file.read_text().splitlines()[1])["target"] for file in files]

    ask(tmp_path / "one", "kitchen")
    assert kept() == ["kitchen"]
    ask(tmp_path / "one", "office")
    assert kept() == ["kitchen", "office"] and read == ["kitchen", "office"]
    # a copy is the same, and so is what was there before
    ask(tmp_path / "copied", "office")
    ask(tmp_path / "copied", "kitchen")
    assert kept() == ["office", "kitchen"] and read == ["kitchen", "office"]


def test_answers_under_another_key_are_set_aside_and_put_back(tmp_path):
    def record(answer):
        return answer_log.AnswerRecord("Where?", answer, answer, None, None, 1, 1, 1.0, 1.0)

    def found():
        return {file.name: len(file.read_text().splitlines()) - 1 for file in tmp_path.iterdir()}

    answer_log.AnswerLog(tmp_path, "qa1_1s", "aa").append([record("office"), record("garden")])
    answer_log.AnswerLog(tmp_path, "qa1_1s", "bb").append([record("kitchen")])
    assert found() == {"qa1_1s.jsonl": 1, "qa1_1s.aa.jsonl": 2}
    again = answer_log.AnswerLog(tmp_path, "qa1_1s", "aa")
    assert [one.target for one in again.records] == ["office", "garden"]
    again.append([record("hallway")])
    assert found() == {"qa1_1s.jsonl": 3, "qa1_1s.bb.jsonl": 1}
    outdated = [json.dumps({"key": "aa"}), json.dumps({"question": "Where?", "control": "office"})]
    (tmp_path / "qa1_1s.jsonl").write_text("\n".join(outdated) + "\n")
    log = answer_log.AnswerLog(tmp_path, "qa1_1s", "aa")
    assert log.records == []
    log.append([record("office")])  # in place of what could not be read
    assert found()["qa1_1s.jsonl"] == 1
    (tmp_path / "qa1_1s.jsonl").write_text("not ours")
    assert answer_log.AnswerLog(tmp_path, "qa1_1s", "aa").records == []


def test_copied_facts_and_books_are_the_same(model, tmp_path):
    story = "1 Mary went to the office.\n2 Where is Mary? \toffice\t1\n"
    book = "It was a dark night, and the wind howled around the old stones of the tower. " * 40

    def seen(folder, book=book, story=story):
        (folder / "books").mkdir(parents=True)
        for name in range(9):  # enough for every split
            (folder / "books" / f"{name}.txt").write_text(book)
        for part in ("train", "test"):
            (folder / f"qa1_single-supporting-fact_{part}.txt").write_text(story)
        found = {"facts": "official", "babi_dir": str(folder)}
        found |= {"background": str(folder / "books"), "tasks": ("qa1",)}
        data = dataclasses.replace(model.config.data, **found)
        return sources.Generated(model, data=data, split="train").describe()

    first = seen(tmp_path / "one")
    assert seen(tmp_path / "two") == first
    assert seen(tmp_path / "three", book=book.replace("dark", "fair")) != first
    assert seen(tmp_path / "four", story=story.replace("office", "garden")) != first


def test_official_questions_that_come_again_are_said(model, tmp_path, capfd):
    cli.log_to_stderr()
    lines = (f"1 Mary went to the {w}.\n2 Where is Mary? \t{w}\t1\n" for w in ("office", "attic"))
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text("".join(lines))
    source = sources.open_source(str(tmp_path), model)
    assert source.count("qa1", "1s", 2) == 2 and capfd.readouterr().err == ""
    assert source.count("qa1", "1s", 3) == source.count("qa1", "2s", 3) == 3
    told = "qa1 has 2 questions (test): of 3 asked, some are the same in other background\n"
    assert capfd.readouterr().err == told  # once


def test_a_folder_that_training_never_saw_is_taken_whole(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "books").mkdir()
    text = "It was a dark night, and the wind howled around the old stones of the tower. " * 40
    (tmp_path / "books" / "a.txt").write_text(text)  # one book has one split
    books = str(tmp_path / "books")
    with pytest.raises(sources.QuestionError, match="--background_split all"):
        for split in ("validation", "test"):
            sources.open_source("generated", model, split=split, background=books)
    source = sources.open_source("generated", model, background=books, background_split="all")
    assert source.ask("qa1", "2s", range(1))[0].facts
    (tmp_path / "qa1").mkdir()
    with pytest.raises(sources.QuestionError, match="which --background_split cannot change"):
        sources.open_source(str(tmp_path), model, background_split="all")


def test_what_files_cannot_be_told(model, tmp_path):
    with pytest.raises(sources.QuestionError, match="which --split and --lengths_by cannot"):
        sources.open_source(str(tmp_path), model, split="test", lengths_by="nobody/has-it")


def test_processes_hold_the_answers_of_all_in_their_order(tmp_path, monkeypatch):
    """Whatever is in them: a text of the world has line ends that are not \\n."""

    def record(answer):
        return answer_log.AnswerRecord(
            "Where?", answer, "a\u2028b\x85c", None, None, 1, 1, 1.0, 1.0
        )

    monkeypatch.setattr(answer_log.jax, "process_count", lambda: 2)
    second = json.dumps([dataclasses.asdict(record("garden"))]).encode()
    monkeypatch.setattr(answer_log.mesh, "exchange", lambda said: [said, second])
    log = answer_log.AnswerLog(tmp_path, "qa1_1s", "aa")
    log.append([record("office")])
    assert log.records == [record("office"), record("garden")]
    assert answer_log.AnswerLog(tmp_path, "qa1_1s", "aa").records == log.records


@pytest.mark.parametrize(
    ("cell", "length", "said"), [("none", "3s", 1), ("none", "1s", 0), ("rmt", "3s", 0)]
)
def test_a_model_without_memory_is_said_to_see_the_last_segment(
    tmp_path, caplog, cell, length, said
):
    one = tiny_run.model(tmp_path, cell)
    evaluate(one, tasks=["qa1"], lengths=[length], samples=1, progress=False)
    assert sum("no memory: of a text of more than 48 tokens" in m for m in caplog.messages) == said
