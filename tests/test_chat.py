"""Instruct models: the chat template around a text of any length, stop texts, streamed answers."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tiny_run
from commands import exit_code
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax import api, ask, evaluate
from rmt_jax.config import Data, Prompt
from rmt_jax.data import tasks, text_stream
from rmt_jax.evaluation import chat, sources, streaming
from rmt_jax.evaluation import evaluate as run
from rmt_jax.evaluation import session as recall

WORDS = tiny_run.words()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n' + m['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' [assistant]\n' }}{% endif %}"
)
TEXTS = (
    "Mary went home.",
    "  Mary went home.\n\nThen she slept \n",
    "Mary went to the garden.\n" * 40 + "It rained",
    "玛丽走进花园拿起牛奶" * 20,
    "one",
)
ASKED = "Where is Mary?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was trained on no task, with a template beside its tokenizer."""
    pytest.importorskip("jinja2", reason="pip install 'rmt_jax[chat]'")
    config = tiny_run.config("rmt", "none").replace(
        data=Data(tasks=()), prompt=Prompt("none", tokens=0)
    )
    config = config.replace(model=dataclasses.replace(config.model, segment_tokens=96))
    folder = tiny_run.save(tmp_path_factory.mktemp("chat") / "run", config)
    said = {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "<end>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(said))
    return api.load(folder)


def fed(model, monkeypatch):
    """The tokens that a model is given from now on, in their order."""
    found, read, make = [], api.Model.read, api.Model.generate_from

    def watched_read(self, memory, tokens, mask=None, prompt=None):
        found.extend(np.asarray(tokens)[np.asarray(mask)].tolist())
        return read(self, memory, tokens, mask, prompt)

    def watched_make(self, memory, tokens, mask, *rest):
        found.extend(np.asarray(tokens)[np.asarray(mask)].tolist())
        return make(self, memory, tokens, mask, *rest)

    monkeypatch.setattr(api.Model, "read", watched_read)
    monkeypatch.setattr(api.Model, "generate_from", watched_make)
    return found


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12].strip())
@pytest.mark.parametrize("size", (20, 10_000))
def test_a_model_reads_what_the_template_says(model, monkeypatch, text, size):
    """The very tokens of `apply_chat_template`, however the text is cut."""
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(
        tokenizer_object=WORDS.inner, chat_template=TEMPLATE, bos_token="<s>"
    )
    content = f"{text.strip()}\n\n{ASKED}"
    wanted = whole.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    made, found = recall.Session(model, 8, chat.chat_of(model)), fed(model, monkeypatch)
    made.read(text_stream.pieces(io.StringIO(text), size), made.prompts_for([ASKED]))
    made.answer(ASKED)
    assert WORDS.decode(found) == wanted
    if text.isascii():
        assert found == WORDS.encode(wanted)


@pytest.mark.parametrize("text", ("", *TEXTS), ids=lambda text: text[:12].strip())
def test_a_text_and_a_question_are_cut_as_the_template_says(model, text):
    context, after = chat.chat_of(model).encoded(WORDS, text, f" {ASKED}")
    wanted = f"<s>[user]\n{text.strip()}\n\n{ASKED} [assistant]\n"
    assert WORDS.decode([*context, *after]) == wanted
    if text.isascii():
        assert [*context, *after] == WORDS.encode(wanted)
    assert WORDS.decode(after).endswith(f"\n\n{ASKED} [assistant]\n")


@pytest.mark.parametrize("length", ("0k", "150"))
def test_an_evaluation_asks_in_the_template(model, monkeypatch, tmp_path, length):
    """One message: the text, the description of the task, the question; in files of others too."""
    source = sources.open_source("generated", model, chat=chat.chat_of(model))
    plain = sources.open_source("generated", model)
    one, bare = source.ask("qa2", length, range(1))[0], plain.ask("qa2", length, range(1))[0]
    text = WORDS.decode(bare.encoded.context)
    description = tasks.create("qa2", model.config.data).description
    wanted = f"<s>[user]\n{text.strip()}\n\n{description} {bare.question} [assistant]\n"
    assert WORDS.decode([*one.encoded.context, *one.encoded.question]) == wanted
    assert (one.question, one.target) == (bare.question, bare.target) and not one.facts
    assert source.describe() != plain.describe() and "paraphrase" in source.perturbations()
    (tmp_path / "qa2").mkdir()
    record = {"input": text, "question": bare.question, "target": bare.target}
    (tmp_path / "qa2" / "0k.json").write_text(json.dumps([record]))
    theirs = sources.open_source(str(tmp_path), model, chat=chat.chat_of(model))
    again = theirs.ask("qa2", "0k", range(1))[0].encoded
    assert WORDS.decode([*again.context, *again.question]) == wanted
    found = fed(model, monkeypatch)
    run(model, tasks=["qa2"], lengths=[length], samples=1, reset=False)
    assert WORDS.decode(found) in wanted and WORDS.decode(found).endswith(wanted[-40:])


def test_the_evaluation_command_chooses_by_itself(model, tmp_path, capfd):
    words = ["--workdir", str(model.folder), "--tasks", "qa1", "--lengths", "0k", "--samples", "2"]

    def said(*more, code=0):
        out = ["--out", str(tmp_path / "-".join(["out", *more]))]
        assert exit_code(evaluate.main, [*words, "--no_reset", *out, *more]) == code
        return "".join(capfd.readouterr())

    notice = "asked in its chat template; with --chat=no text and question stand alone"
    assert notice in (auto := said()) and notice in said("--chat", "yes")
    assert "greedy decoding · asked in the chat template" in auto
    plain = said("--chat", "no")
    assert notice not in plain and "in the chat template" not in plain
    assert "leave it out, or give --chat=no" in said("--teacher_forced", code=2)
    assert "leave out --tasks, --lengths, --chat" in said("--perplexity", "--chat", "yes", code=2)
    assert "written:" in said("--inspect")


def test_an_evaluation_needs_no_template_where_none_is_wanted(model, monkeypatch):
    """Without the extra `chat`, questions of the caller's own can be asked."""
    source = sources.open_source("generated", model)
    monkeypatch.setattr(chat, "chat_of", lambda _: pytest.fail("a template was asked for"))
    assert not run(model, tasks=["qa1"], lengths=["0k"], samples=1, reset=False, source=source)[
        0
    ].chat


def test_memory_of_a_chat_is_kept(model, tmp_path):
    template = chat.chat_of(model)
    made = recall.Session(model, 8, template)
    made.read([TEXTS[2]], made.prompts_for([ASKED]))
    made.save(tmp_path / "m.npz")
    again = recall.Session(model, 8, template)
    again.load(tmp_path / "m.npz")
    assert again.answer(ASKED) == made.answer(ASKED)
    with pytest.raises(recall.RecallError, match="was read with --chat=yes: ask it so as well"):
        recall.Session(model, 8).load(tmp_path / "m.npz")


@pytest.mark.slow
def test_the_command_line_chooses_by_itself(model, tmp_path, capsys, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text(TEXTS[2])
    words = ["--workdir", str(model.folder), "--file", str(book), "--question", ASKED, "--quiet"]

    def said(*more, code=0):
        assert exit_code(ask.main, [*words, "--tokens", "12", *more]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    auto = said()
    assert auto == said("--chat", "yes") == said("--stream") and auto != said("--chat", "no")
    drawn = said("--temperature", "2", "--top_p", "0.9", "--top_k", "50", "--seed", "3")
    assert drawn == said("--temperature", "2", "--top_p", "0.9", "--top_k", "50", "--seed", "3")
    assert drawn != auto and drawn != said("--temperature", "2", "--seed", "4")
    stop = drawn[3:6]
    cut = said(
        "--temperature", "2", "--top_p", "0.9", "--top_k", "50", "--seed", "3", "--stop", stop
    )
    assert cut.strip() == drawn[: drawn.index(stop)].strip()
    for argv, sentence in (
        (["--top_k", "4"], "--top_k change nothing in greedy answers"),
        (["--temperature", "-1"], "The temperature is -1"),
        (["--temperature", "1", "--top_p", "2"], "top_p is 2"),
        (["--stop", ""], "An empty --stop"),
        (["--tokens", "96"], "a segment of this model holds 96"),
    ):
        assert sentence in said(*argv, code=2)
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n ")
    assert exit_code(ask.main, [*words[:3], str(blank), *words[4:]]) == 2
    assert "holds no text" in capsys.readouterr().err


def test_templates_that_cannot_be_used_are_sentences(model, tmp_path):
    plain = tiny_run.model(tmp_path / "plain", source="none")
    with pytest.raises(chat.ChatError, match="has no chat template"):
        chat.chat_of(plain)
    folder = tmp_path / "plain"
    for template, sentence in (
        ("{{ raise_exception('no users') }}", "can't be filled .no users"),
        ("{{ messages[0]['content'] | upper }}", "changes or leaves out what a user says"),
        ("{% for %}", "can't be filled"),
    ):
        (folder / "tokenizer" / "chat_template.jinja").write_text(template)
        with pytest.raises(chat.ChatError, match=sentence):
            chat.chat_of(plain)


def test_of_several_templates_the_default_is_taken(model, tmp_path):
    plain = tiny_run.model(tmp_path, source="none")
    both = [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": both, "bos_token": "<s>"})
    )
    assert chat.chat_of(plain) == chat.chat_of(model) == ("<s>[user]\n", " [assistant]\n")


STOPS = st.lists(st.sampled_from(["ab", "\n\n", "b c", "é", " a"]), max_size=2)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \né牛c", max_size=20), STOPS, st.integers(0, 25))
def test_streamed_pieces_join_to_the_answer(text, stops, end):
    ids = WORDS.encode(text)
    ids = [*ids[:end], WORDS.end, *ids[end:]]
    pieces = list(streaming.text_pieces(WORDS, iter(ids), [WORDS.end], stops))
    wanted = WORDS.decode(ids[: ids.index(WORDS.end)]).lstrip()
    found = [wanted.find(stop) for stop in stops if stop in wanted]
    wanted = wanted[: min(found, default=len(wanted))].rstrip()
    assert "".join(pieces) == wanted and all(pieces)


def test_no_token_is_asked_for_behind_a_stop():
    ids, taken = WORDS.encode("one two three four"), []

    def tokens():
        for token in ids:
            taken.append(token)
            yield token

    assert list(streaming.text_pieces(WORDS, tokens(), [], [" three"])) == ["one", " two"]
    assert len(taken) < len(ids)
