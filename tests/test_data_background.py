"""Background: haystacks, books split by author, hard negatives, and what is no background."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmt_jax.config import Data
from rmt_jax.data import tokenizer, words
from rmt_jax.data.compose import Composer
from rmt_jax.data.corpus import background, documents, hard_negatives
from rmt_jax.data.rng import AddressedRng

TOKENS = tokenizer.load()
TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")


@pytest.fixture(scope="module")
def composer():
    return Composer(Data(TASKS), TOKENS, "train", segment_tokens=128)


def books(folder, count=12, sentence="It was a dark and stormy night, number {} of book {}."):
    folder.mkdir(exist_ok=True)
    for book in range(count):
        text = " ".join(sentence.format(i, book) for i in range(50))
        (folder / f"b{book}.txt").write_text(text, encoding="utf-8")
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(tokens=st.integers(1, 5000), first=st.integers(0, 10**6))
def test_a_haystack_has_the_tokens_asked_for(composer, tokens, first):
    hay = composer.background
    taken = hay.take(first % hay.sentences, tokens)
    assert len(taken.tokens) == tokens
    assert taken.starts[0] == 0 and (np.diff(taken.starts) > 0).all()
    assert taken.starts[-1] < tokens


def test_a_haystack_longer_than_the_corpus_goes_round(composer):
    hay = composer.background
    total = len(hay.tokens)
    taken = hay.take(3, 2 * total + 7)
    assert np.array_equal(taken.tokens[:total], taken.tokens[total : 2 * total])
    assert len(taken.tokens) == 2 * total + 7


def test_found_hard_negatives_are_sentences_with_a_name_of_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    plain = "Nothing in this whole book was ever said of anybody or of anything at all."
    named = "It was said that old John had left them in the garden before it was dark."
    folder = books(tmp_path / "books", sentence=" ".join([plain, named, plain, plain]))
    composer = Composer(Data(TASKS, background=str(folder)), TOKENS)
    samples = [composer.sample("qa4", "1k", 0, 0, hard_negatives=kind) for kind in ("found", "")]
    texts = [TOKENS.decode(sample.context) for sample in samples]
    assert "Nothing" not in texts[0] and "Nothing" in texts[1] and "John" in texts[1]
    assert samples[0].story == samples[1].story
    assert len(samples[0].context) == len(samples[1].context)


@pytest.mark.parametrize(
    ("sentence", "form"),
    [
        ("He came into the room and shut the door.", r"He came into the (\w+) and shut the door\."),
        ("She went slowly to the window.", r"She went slowly to the (\w+)\."),
        ("They took his letters, and read them.", r"They took the (\w+), and read them\."),
        ("She picked up a stone.", r"She picked up the (\w+)\."),
    ],
)
def test_a_sentence_is_made_to_look_like_a_fact(sentence, form):
    known = {*words.OFFICIAL.places, *words.OFFICIAL.objects}
    made = {hard_negatives.make_hard_negative(sentence, AddressedRng(0, k)) for k in range(30)}
    names = {re.fullmatch(form, one)[1] for one in made}
    assert len(names) > 1 and names <= known


def test_what_is_not_made_to_look_like_a_fact():
    for sentence in (
        "John went to the window.",  # would be one
        "It was late.",
        "He went to the window" + " and waited" * 50,
    ):
        assert all(
            hard_negatives.make_hard_negative(sentence, AddressedRng(0, k)) is None
            for k in range(20)
        )
    rare = [
        hard_negatives.make_hard_negative("The evening was fine.", AddressedRng(0, k))
        for k in range(200)
    ]
    assert 0 < sum(one is not None for one in rare) < 100


def test_made_hard_negatives_as_background(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    plain = "Nothing in this whole book was ever said of anybody or of anything at all."
    going = "After a long while the old captain went to the window and looked at the rain."
    folder = books(tmp_path / "books", sentence=f"{plain} {going}")
    composer = Composer(Data(TASKS, background=str(folder)), TOKENS)
    text = TOKENS.decode(composer.sample("qa4", "1k", 0, 0, hard_negatives="made").context)
    assert "Nothing" not in text and "window" not in text
    assert len(set(re.findall(r"captain went to the (\w+)", text))) > 3
    empty = books(tmp_path / "empty", sentence=plain)
    with pytest.raises(ValueError, match="no sentence such as 'She came into the room'"):
        Composer(Data(TASKS, background=str(empty)), TOKENS).sample(
            "qa4", "1k", 0, 0, hard_negatives="made"
        )


def test_hard_negatives_need_a_background_that_has_some():
    # The built-in text has none of these names.
    composer = Composer(Data(TASKS), TOKENS)
    with pytest.raises(
        ValueError, match=r"holds a name .* set config.data.hard_negative_rate to 0"
    ):
        composer.sample("qa1", "1k", 0, 0, hard_negatives="found")
    # Evaluation takes text as it comes, whatever training did.
    assert Composer(Data(TASKS, hard_negative_rate=1.0), TOKENS).sample("qa1", "1k", 0, 0).facts


def test_a_folder_of_books_is_split_by_author(tmp_path, monkeypatch):
    import json

    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    folder = books(tmp_path / "books", 30)
    rows = [{"file": f"b{i}.txt", "author": f"author {i // 2}"} for i in range(30)]
    (folder / "manifest.json").write_text(json.dumps(rows))
    found = {}
    for split in documents.SPLITS:
        hay = background.load(str(folder), TOKENS, split)
        text = TOKENS.decode(hay.tokens)
        found[split] = {i // 2 for i in range(30) if f"of book {i}." in text}
    assert set.union(*found.values()) == set(range(15))
    assert sum(map(len, found.values())) == 15
    made = background.load(str(folder), TOKENS, "train")
    assert isinstance(made.tokens, np.memmap) and made.tokens.dtype == np.uint16
    assert len(list((tmp_path / "cache" / "background").iterdir())) == 1
    books(folder, 31)  # other texts: other arrays
    background.load(str(folder), TOKENS, "train")
    assert len(list((tmp_path / "cache" / "background").iterdir())) == 2


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda f: None, "holds no .txt file"),
        (lambda f: (f / "a.txt").write_bytes(b"abc\0def"), "binary file"),
        (lambda f: (f / "a.txt").write_bytes("café".encode("latin1")), "not UTF-8.*iconv"),
        (lambda f: (f / "a.txt").write_text("Short. Too short."), "no sentence of 10 tokens"),
    ],
)
def test_bad_background_is_named_and_leaves_nothing(tmp_path, monkeypatch, make, what):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "books"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=what):
        background.load(str(folder), TOKENS, "train")
    left = list((tmp_path / "cache").glob("background/*"))
    assert not [p for p in left if p.name.startswith(".")]
    with pytest.raises(ValueError, match="no folder"):
        background.load(str(tmp_path / "nowhere"), TOKENS, "train")


def test_all_of_a_folder_is_its_splits_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    folder = str(books(tmp_path / "books", 30))
    parts = [background.load(folder, TOKENS, split) for split in ("train", "validation", "test")]
    whole = background.load(folder, TOKENS, "all")
    assert np.array_equal(whole.tokens, np.concatenate([part.tokens for part in parts]))
    assert whole.sentences == sum(part.sentences for part in parts)
    number = 0
    for part in parts:  # every sentence stands where its start says
        for i in (0, part.sentences - 1):
            first, second = whole.starts[number + i : number + i + 2]
            own = part.tokens[part.starts[i] : part.starts[i + 1]]
            assert np.array_equal(whole.tokens[first:second], own)
        number += part.sentences


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set the environment variable RMT_JAX_CACHE"):
        background.load(str(books(tmp_path / "books")), TOKENS, "train")


def test_sentences():
    text = (
        'Mr. Smith met Dr. J. Brown at 3.5 miles. "Stop!" he cried. Why? No one knew... But\n'
        "on it went.\n\nA new paragraph without an end\n\nThe last one!"
    )
    assert documents.sentences(text) == [
        "Mr. Smith met Dr. J. Brown at 3.5 miles.",
        '"Stop!" he cried.',
        "Why?",
        "No one knew...",
        "But on it went.",
        "A new paragraph without an end",
        "The last one!",
    ]


def test_builtin_text_is_english():
    text = " ".join(text for _, text in documents.builtin())
    assert len(text) > 200_000
    assert "::=" not in text and ">>>" not in text
