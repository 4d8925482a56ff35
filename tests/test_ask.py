"""One text, read once, asked often; memory kept in a small file; errors are sentences."""

import dataclasses
import gzip
import io
import os
import sys
import threading

import jax
import numpy as np
import pytest
import tiny_run
from commands import exit_code
from jax.experimental.compilation_cache import compilation_cache

from rmt_jax import ask, cli
from rmt_jax.config import Data
from rmt_jax.data import tasks, text_stream
from rmt_jax.evaluation import answering, evaluate, sources
from rmt_jax.evaluation import session as recall

TEXT = "It rained. Mary went to the garden. " + "The sun shone on the old house again. " * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.save(tmp_path_factory.mktemp("run"), tiny_run.config())


@pytest.fixture(scope="module")
def model(run):
    return tiny_run.api.load(run)


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(TEXT)
    return file


def session(model, question="Where is Mary?", text=TEXT):
    made = recall.Session(model)
    made.read(text_stream.pieces(io.StringIO(text)), made.prompts_for([question]))
    return made


def test_a_streamed_text_is_answered_as_evaluation_does(model):
    held = session(model)
    one = sources.encode_question(model, "qa1", "Where is Mary?")
    context = text_stream.encode(model.tokenizer, sources.context_text(TEXT))
    asked = answering.EncodedQuestion(context, one.question, one.prompt)
    expected = answering.greedy_answers(model, [asked], max_new_tokens=held.room, batch=1)[0][0]
    assert held.answer("Where is Mary?") == expected
    assert held.tokens == len(context) and held.characters == len(TEXT)
    assert held.answer("Where is John?", "qa1") is not None  # the memory is not used up


@pytest.mark.parametrize("asked", ["Where is Mary?", "Where is the tall woman called Mary now?"])
def test_texts_that_end_with_their_last_segment(tmp_path, asked):
    """A model trained with align=right: the first segment is the ragged one, as in evaluation."""
    config = tiny_run.config()
    config = config.replace(data=dataclasses.replace(config.data, align="right"))
    model = tiny_run.api.load(tiny_run.save(tmp_path / "run", config))
    one = sources.encode_question(model, "qa1", asked)
    for text in ("Mary went.", TEXT[:300], TEXT):
        context = text_stream.encode(model.tokenizer, sources.context_text(text))
        whole = answering.EncodedQuestion(context, one.question, one.prompt)
        held = recall.Session(model)
        expected = answering.greedy_answers(model, [whole], max_new_tokens=held.room, batch=1)[0][0]
        head = held.head(text_stream.pieces(io.StringIO(text), 100), [asked])
        held.read(
            text_stream.pieces(io.StringIO(text), 100), held.prompts_for([asked], "qa1"), head
        )
        place = answering.layout(len(context), len(one.question), held.room, 48, "right")
        assert len(held.rest) == place.remainder and held.tokens == len(context)
        assert held.answer(asked, "qa1") == expected
    pipe = io.TextIOWrapper(io.BufferedReader(Pipe(TEXT.encode())), encoding="utf-8", newline="")
    again = text_stream.rewindable(pipe)
    assert again is not pipe and again.read() == TEXT
    again.close()


@pytest.mark.parametrize("size", [20, 300])
def test_segments_that_end_with_a_sentence(tmp_path, size):
    config = tiny_run.config()
    config = config.replace(data=dataclasses.replace(config.data, align="sentence"))
    model = tiny_run.api.load(tiny_run.save(tmp_path / "run", config))
    one = sources.encode_question(model, "qa1", "Where is Mary?")
    for text in ("Mary went.", TEXT[:300], TEXT, "no end " * 70):
        context = text_stream.encode(model.tokenizer, sources.context_text(text))
        asked = answering.EncodedQuestion(context, one.question, one.prompt)
        expected = answering.greedy_answers(
            model, [asked], max_new_tokens=sources.answer_room(model), batch=1
        )[0][0]
        held = recall.Session(model)
        held.read(text_stream.pieces(io.StringIO(text), size), held.prompts_for([], "qa1"))
        assert held.tokens == len(context) and len(held.rest) <= 48
        assert held.answer("Where is Mary?", "qa1") == expected


class Pipe(io.BytesIO):
    def seekable(self):
        return False


def test_white_space_is_single_however_the_text_is_cut(model):
    wild = TEXT.replace(" old", "\n\n  old")
    plain, held = session(model), session(model, text=wild)
    assert held.tokens == plain.tokens and held.rest.tolist() == plain.rest.tolist()
    made = recall.Session(model)
    made.read(text_stream.pieces(io.StringIO(wild), 40), made.prompts_for(["Where is Mary?"]))
    assert made.tokens == plain.tokens and made.rest.tolist() == plain.rest.tolist()


def test_pieces_give_the_tokens_of_the_whole(monkeypatch):
    words, text = tiny_run.words(), sources.context_text(TEXT + "Mr. Poe's “Raven”, 1845: naïve—")
    whole = words.encode(text)
    for size in (1, 7, 50, 10_000):
        parts = list(text_stream.pieces(io.StringIO(text), size))
        assert "".join(parts) == text
        assert np.concatenate(list(text_stream.encode_pieces(words, iter(parts)))).tolist() == whole
        monkeypatch.setattr(text_stream, "PIECE", size)
        assert text_stream.encode(words, text).tolist() == whole
        assert "".join(text_stream.decode_pieces(words, np.array(whole))) == text
    assert text_stream.encode(words, "").tolist() == []


def test_other_writings_stream_too(monkeypatch):
    words, text = tiny_run.words(), " Мария пошла в сад и взяла молоко" * 60
    parts = list(text_stream.pieces(io.StringIO(text), 100))
    assert len(parts) > 10 and "".join(parts) == text
    assert np.concatenate(
        list(text_stream.encode_pieces(words, iter(parts)))
    ).tolist() == words.encode(text)


def test_a_writing_without_spaces_is_not_held_whole(monkeypatch):
    monkeypatch.setattr("rmt_jax.data.corpus.pieces.LONGEST", 400)
    monkeypatch.setattr("rmt_jax.data.corpus.pieces.PIECE", 100)
    text = "玛丽走进花园拿起牛奶" * 300
    parts = list(text_stream.pieces(io.StringIO(text), 100))
    assert "".join(parts) == text and max(map(len, parts)) <= 500
    words = tiny_run.words()
    assert words.decode(text_stream.encode(words, text)) == text


def test_memory_is_kept_and_belongs_to_its_weights(model, tmp_path):
    held = session(model)
    written = held.save(tmp_path / "kept" / "book.npz")
    assert written < 20_000  # a few kilobytes, whatever the text
    again = recall.Session(model)
    again.load(tmp_path / "kept" / "book.npz")
    assert again.answer("Where is Mary?") == held.answer("Where is Mary?")
    assert again.tokens == held.tokens
    other = recall.Session(tiny_run.model(tmp_path / "other", "none"))
    with pytest.raises(recall.RecallError, match="read by another model"):
        other.load(tmp_path / "kept" / "book.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for name, message in (("bad.npz", "no memory that"), ("absent.npz", "no file")):
        with pytest.raises(recall.RecallError, match=message):
            again.load(tmp_path / name)


def test_one_reading_a_task_prompt(model):
    held = recall.Session(model)
    told = held.prompts_for(["Where is Mary?", "Where is John?", "Who gave the milk to Bill?"])
    assert [t.name for t in told] == ["qa1", "qa5"]
    assert [t.name for t in held.prompts_for([])] == ["qa1", "qa5"]  # to be asked later
    held.read(["Mary went to the garden. " * 30], told)
    alone = session(model, text="Mary went to the garden. " * 30)
    assert held.answer("Where is Mary?") == alone.answer("Where is Mary?")
    with pytest.raises(recall.RecallError, match="read the text again"):
        alone.answer("Who gave the milk to Bill?")
    with pytest.raises(recall.RecallError, match="Of which task"):
        alone.answer("Why?")
    with pytest.raises(recall.RecallError, match="no task qa77"):
        alone.answer("Why?", "qa77")


def test_the_question_before_the_text(tmp_path):
    model = tiny_run.model(tmp_path, source="question")
    held = recall.Session(model)
    with pytest.raises(recall.RecallError, match="the question before the text"):
        held.prompts_for([])
    held.read([TEXT], held.prompts_for(["Where is Mary?"]))
    other = recall.Session(model)
    other.read([TEXT], other.prompts_for(["Where is John?"]))
    assert not np.allclose(held.memory.state, other.memory.state)  # each is read for its question
    held.answer("Where is Mary?")  # of which it has been read
    with pytest.raises(recall.RecallError, match="read the text again"):
        held.answer("Where is John?")


@pytest.mark.parametrize("cell", ["prmt", "armt", "none"])
def test_other_cells_keep_their_memory(tmp_path, cell):
    model = tiny_run.model(tmp_path, cell)
    held = recall.Session(model)
    held.read([TEXT], held.prompts_for([]))
    held.save(tmp_path / "memory.npz")
    again = recall.Session(model)
    again.load(tmp_path / "memory.npz")
    question = "Who gave the milk to Bill?"
    assert again.answer(question) == held.answer(question)


def test_guess():
    both = Data(tasks=("qa1", "qa5"))
    assert tasks.guess("Where is Mary?", both) == "qa1"
    assert tasks.guess("Where is Mary? ", Data(tasks=("qa12",))) == "qa12"
    assert tasks.guess("Where  is\u00a0the milk?", both) == "qa2"
    assert tasks.guess("Where is the milk?", both) == "qa2"
    assert tasks.guess("Where was the milk before the office?", both) == "qa3"
    assert tasks.guess("What is north of the garden?", both) == "qa4"
    assert tasks.guess("What did Fred give to Bill?", both) == "qa5"
    assert tasks.guess("Is the box bigger than the chest?", both) == "qa18"
    assert tasks.guess("Why?", both) == ""


@pytest.mark.parametrize(
    ("question", "task", "told"),
    [
        ("Where is Mary?", "", ""),
        ("What did Fred give to Bill?", "", ""),
        ("Is the box bigger than the chest?", "", "is of qa18, and this model was trained on qa1"),
        ("Is the box bigger than the chest?", "qa1", "is of qa18, and"),
        ("How odd is it?", "qa7", "is of qa7, and this model was trained on qa1, qa5: its answer"),
        ("Why is it dark?", "Say why.", "is of no form that it knows, and this model was trained"),
    ],
)
def test_a_question_of_a_kind_that_was_not_trained(model, capfd, question, task, told):
    cli.log_to_stderr()
    held = recall.Session(model)
    held.read(text_stream.pieces(io.StringIO("Mary went.")), held.prompts_for([question], task))
    capfd.readouterr()
    assert held.answer(question, task) is not None
    said = capfd.readouterr().err
    assert told in said if told else said == ""


def test_command_line(run, book, tmp_path, capsys):
    memory = str(tmp_path / "m.npz")
    words = ["--workdir", str(run), "--file", str(book), "--question", "Where is Mary?"]
    assert exit_code(ask.main, [*words, "--save_memory", memory]) == 0
    out, err = capsys.readouterr()
    assert "tokens/s" in err and "kB)" in err
    assert (
        exit_code(ask.main, ["--workdir", str(run), "--load_memory", memory, *words[4:], "--quiet"])
        == 0
    )
    assert capsys.readouterr() == (out, "")


def test_standard_input_and_typed_questions(run, book, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert (
        exit_code(ask.main, ["--workdir", str(run), "--question", "Where is Mary?", "--quiet"]) == 0
    )
    answer = capsys.readouterr().out
    typed = iter(["Where is Mary?", "Why?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert exit_code(ask.main, ["--workdir", str(run), "--file", str(book), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == answer and "Of which task" in err


@pytest.mark.parametrize(
    "words,message",
    [
        (["--file", "absent.txt"], "no file absent.txt"),
        (["--file", "."], "is a folder"),
        (["--file", "empty.txt"], "is empty"),
        (["--file", "blank.txt"], "holds no text"),
        (["--file", "latin.txt"], "not UTF-8"),
        (["--file", "book.txt", "--question", " "], "empty --question"),
        (["--file", "book.txt", "--question", "Where is \udce9?"], "is not UTF-8 text"),
        (["--load_memory", "array.npy"], "is no memory that --save_memory wrote"),
        (["--file", "book.txt", "--tokens", "0"], "needs at least 1"),
        (["--file", "book.txt", "--load_memory", "m.npz"], "not both"),
        (["--file", "book.txt", "--question", f"Is {'very ' * 60}?", "--task", "qa1"],
         "a segment of this model holds 48"),
        (["--file", "book.txt", "--question", "Where is Mary?", "--task", "word " * 60],
         "room for 48"),
    ],
)  # fmt: skip
def test_errors_are_sentences(run, book, capsys, monkeypatch, words, message):
    monkeypatch.chdir(book.parent)
    (book.parent / "empty.txt").touch()
    np.save(book.parent / "array.npy", np.zeros(3))
    (book.parent / "blank.txt").write_text(" \n\n ")
    (book.parent / "latin.txt").write_bytes("Zoë".encode("latin1") * 10)
    if "--question" not in words:
        words = [*words, "--question", "Where is Mary?"]
    assert exit_code(ask.main, ["--workdir", str(run), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(TEXT.encode(), mtime=0), "is compressed with gzip: gunzip it first"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF: take the text out first"),
        (b"PK\x03\x04\x14\0\x06", "is a zip, as e-books and office documents are"),
        (TEXT.encode("utf-16"), "is UTF-16: convert it first, with iconv -f UTF-16"),
        (b"\x7fELF\0\0", "is a binary file and no text"),
    ],
)
def test_files_of_other_kinds_get_their_own_advice(tmp_path, content, message):
    file = tmp_path / "book.txt"
    file.write_bytes(content)
    with pytest.raises(text_stream.TextError, match=message):
        text_stream.open_text(file)
    with pytest.raises(text_stream.TextError, match=message):
        text_stream.refuse_other_kinds(content[: text_stream.HEAD], "standard input")


def test_a_byte_order_mark_is_no_text(tmp_path, model):
    file = tmp_path / "book.txt"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    with text_stream.open_text(file) as stream:
        assert "".join(text_stream.pieces(stream)) == TEXT
        stream.seek(0)  # as where a text is counted first
        assert "".join(text_stream.pieces(stream)) == TEXT


def test_a_pipe_as_a_file_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(TEXT,))
    writer.start()
    with text_stream.open_text(pipe) as stream:
        assert "".join(text_stream.pieces(stream)) == TEXT
    writer.join()


def test_what_was_compiled_once_is_not_again(run, book, tmp_path, monkeypatch):
    """A second `ask`, and a second evaluation of the same shapes, compile nothing."""
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir",
             "jax_persistent_cache_min_compile_time_secs")  # fmt: skip
    before = [jax.config.values[name] for name in names]
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    try:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", None)
        tiny_run.api.load(run)
        folder = tmp_path / "cache" / "xla"
        assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
        # The programs of tests are compiled faster than what is worth keeping.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        kept = []
        for _ in range(2):
            words = ["--workdir", str(run), "--file", str(book), "--question", "Where is Mary?"]
            assert exit_code(ask.main, [*words, "--quiet"]) == 0
            evaluate(tiny_run.api.load(run), lengths=["3s"], samples=1, progress=False)
            kept.append({p.name for p in folder.iterdir()})
        assert kept[0] == kept[1] and len(kept[0]) >= 3
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_no_checkpoint(book, capsys):
    words = ["--workdir", str(book.parent / "run"), "--file", str(book), "--question", "Where?"]
    assert exit_code(ask.main, words) == 2
    assert str(book.parent / "run") in capsys.readouterr().err


def test_a_model_that_is_told_the_question_first_needs_one(tmp_path, book, capsys):
    tiny_run.model(tmp_path / "run", source="question")
    assert (
        exit_code(ask.main, ["--workdir", str(tmp_path / "run"), "--file", str(book), "--quiet"])
        == 2
    )
    assert "give --question" in capsys.readouterr().err


def test_the_shipped_checkpoint_answers_by_default(tmp_path, capsys, monkeypatch):
    book = tmp_path / "book.txt"
    facts = "Mary went to the garden. John moved to the office. Mary travelled to the kitchen."
    book.write_text(facts + " Then nothing happened for the rest of the long and quiet evening.")
    words = ["--file", str(book), "--quiet"]
    typed = iter(["Where is Mary?", "Where is John?", ""])  # of a text that was read once
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert exit_code(ask.main, words) == 0
    assert capsys.readouterr().out.split() == ["kitchen", "office"]
