"""Texts to model: tokenised once, each in one split, windows of one text, and what is no text."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax.config import Config, ConfigError, Data, Model, Prompt, Stage, Texts
from rmt_jax.data import segmentation, tasks, tokenizer
from rmt_jax.data.compose import Composer
from rmt_jax.data.corpus import documents, texts
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import Loader
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.tasks import StoryOptions, TaskError
from rmt_jax.validation import validate

pytestmark = pytest.mark.portable

TOKENS = tokenizer.load()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def text_of(number: int, sentences: int = 30) -> str:
    return "\n".join(
        f"Text {number} says in line {i} that it is {number}." for i in range(sentences)
    )


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(path, count=40, first=0):
    return jsonl(path, [{"text": text_of(n)} for n in range(first, first + count)])


def config(source: str, *names: str, segments=2, align="left", **changes) -> Config:
    data = Data(tasks=names or ("novels",), texts={"novels": Texts(train=source)}, align=align)
    return Config(
        model=Model(segment_tokens=16),
        data=data,
        prompt=Prompt(tokens=24),
        stages=(Stage(segments, 10, 16, 1e-3),),
        **changes,
    )


def contents(found: texts.Documents) -> list[str]:
    return [TOKENS.decode(found.text(number)) for number in range(len(found))]


# A source -----------------------------------------------------------------------------------------


def test_a_file_is_tokenised_as_a_whole_and_mapped(tmp_path, monkeypatch):
    """Whatever the pieces that it is read and tokenised in."""
    monkeypatch.setattr(texts, "BLOCK", 1000)
    long = " ".join(text_of(n, 3) for n in range(3000)) + "\n\nEnd.  \u00e9\u2026"
    (tmp_path / "long.txt").write_text(long, encoding="utf-8")
    (tmp_path / "short.txt").write_text(
        "\ufeffOnly this.\r\nAnd that.", encoding="utf-8", newline=""
    )
    found = texts.read(str(tmp_path), TOKENS, field="here")
    assert isinstance(found.tokens, np.memmap) and found.tokens.dtype == np.uint16
    assert [found.name(k) for k in range(2)] == ["long.txt", "short.txt"]
    assert found.text(0).tolist() == TOKENS.encode(long)
    assert contents(found)[1] == "Only this.\nAnd that."
    assert TOKENS.token_bytes[found.text(0)].sum() == len(long.encode())
    assert found.total == sum(found.lengths) == len(found.tokens)


def test_rows_have_names_and_arrays_are_made_once(tmp_path, cache, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "One row."}\r\n\r\n{"n": 1, "text": "And another."}')
    found = texts.read(str(path), TOKENS, field="here")
    assert contents(found) == ["One row.", "And another."]
    assert [found.name(k) for k in range(2)] == ["rows.jsonl:1", "rows.jsonl:3"]
    monkeypatch.setattr(texts, "_make", None)  # not called again
    texts._open.cache_clear()
    again = texts.read(str(path), TOKENS, field="here")
    assert again is not found and contents(again) == contents(found)
    assert again.digest() == found.digest()
    assert len(list((cache / "texts").iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.setenv("RMT_JAX_CACHE", str(cache))
    jsonl(path, [{"body": "Other rows."}])
    other = texts.read(str(path), TOKENS, "body", field="here")
    assert contents(other) == ["Other rows."] and other.digest() != found.digest()


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK", 1 << 14)

    def peak(count: int) -> int:
        path = rows(tmp_path / f"{count}.jsonl", count)
        tracemalloc.start()
        texts.read(path, TOKENS, field="here")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is imported and remembered
    few, many = peak(100), peak(400)
    assert many < 1.2 * few, (few, many)


# Splits -------------------------------------------------------------------------------------------


def test_no_text_is_in_two_splits(tmp_path):
    section = Texts(train=rows(tmp_path / "rows.jsonl", 100))
    jsonl(tmp_path / "twice.jsonl", [{"text": text_of(n % 50)} for n in range(100)])
    for source in (section, Texts(train=str(tmp_path / "twice.jsonl"))):
        found = [contents(texts.load(source, s, TOKENS, "novels")) for s in documents.SPLITS]
        assert sum(map(len, found)) == 100 and all(found)
        assert not any(set(a) & set(b) for a in found for b in found if a is not b)


def test_an_authors_texts_are_in_one_split(tmp_path):
    rows = []
    for number in range(60):
        (tmp_path / f"b{number}.txt").write_text(text_of(number))
        rows.append({"file": f"b{number}.txt", "author": f"author {number // 3}"})
    rows[0] = {"file": "b0.txt", "split": "test"}
    (tmp_path / "manifest.json").write_text(json.dumps(rows))
    section, where = Texts(train=str(tmp_path)), {}
    for split in documents.SPLITS:
        found = texts.load(section, split, TOKENS, "novels")
        for k in range(len(found)):
            number = int(found.name(k)[1:-4])
            where.setdefault(number // 3 if number else "first", set()).add(split)
    assert len(where) == 21 and all(len(splits) == 1 for splits in where.values())
    assert where["first"] == {"test"}


def test_sources_of_their_own(tmp_path, monkeypatch):
    """Validation texts from a file: all of them; then a tenth of the others is for tests alone."""
    train = rows(tmp_path / "train.jsonl", 60)
    own = rows(tmp_path / "own.jsonl", 5, first=58)
    section = Texts(train=train, validation=own)
    found = {s: set(contents(texts.load(section, s, TOKENS, "novels"))) for s in documents.SPLITS}
    assert found["validation"] == {text_of(n) for n in range(58, 63)}
    assert found["train"] | found["test"] == {text_of(n) for n in range(60)}
    assert found["test"] and not found["train"] & found["test"]
    shared = [n for n in (58, 59) if text_of(n) in found["train"]]
    assert shared, "choose another number of texts"
    told = []
    monkeypatch.setattr(texts.log, "warning", lambda text, *values: told.append(text % values))
    data = Data(tasks=("novels",), texts={"novels": section})
    tasks.create("novels", data).open("validation", TOKENS)
    (said,) = told
    assert f"{len(shared)} of the 5 texts of the validation split are trained on too" in said
    assert f"own.jsonl:{shared[0] - 57}" in said


# Passages -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 10**9), size=st.integers(1, 400))
def test_a_window_lies_within_one_text(books, index, size):
    rng = AddressedRng(index)
    window = books.window(rng, size)
    stretches = [TOKENS.decode(books.text(k)) for k in range(len(books))]
    assert any(TOKENS.decode(window) in one for one in stretches)
    assert len(window) == size or any(len(window) == n < size for n in books.lengths)
    assert np.array_equal(books.window(AddressedRng(index), size), window)


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp("books")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMT_JAX_CACHE", str(folder / "cache"))
        path = jsonl(folder / "b.jsonl", [{"text": text_of(n, 2 + 3 * n)} for n in range(6)])
        return texts.read(path, TOKENS, field="here")


def test_texts_are_drawn_by_their_size(books):
    drawn = np.zeros(len(books))
    for index in range(3000):
        whole = TOKENS.decode(books.window(AddressedRng(index), 10**6))
        (held,) = (k for k in range(6) if whole.startswith(f"Text {k} says"))
        drawn[held] += 1
    np.testing.assert_allclose(drawn / 3000, books.lengths / books.total, atol=0.03)


def test_every_token_but_the_first_is_a_target_at_the_place_before_it(tmp_path):
    """Also over the ends of segments, wherever they are cut; short texts stand at the end."""
    source = jsonl(tmp_path / "r.jsonl", [{"text": text_of(n, 1 + n % 5)} for n in range(60)])
    for align in ("left", "right", "sentence"):
        loader = Loader(config(source, segments=3, align=align), TOKENS)
        passages = [loader.composer.passage("novels", "3s", 7, index) for index in range(16)]
        batch = loader.collate(passages, 3)
        known = {tuple(p.tokens.tolist()) for p in passages}
        assert {len(p.tokens) for p in passages} >= {3 * 16 + 1}
        assert min(len(p.tokens) for p in passages) < 3 * 16
        for i, passage in enumerate(passages):
            read = batch.tokens[i][batch.mask[i]].tolist()
            targets = batch.next_token[i][batch.mask[i]].tolist()
            assert read[1:] == targets[:-1] and len(read) >= 1
            assert read + targets[-1:] == passage.tokens.tolist()[: len(read) + 1]
            assert align == "sentence" or len(read) == len(passage.tokens) - 1
            assert (batch.next_token[i][~batch.mask[i]] == -1).all()
            empty = ~batch.mask[i].any(axis=1)
            assert not empty[-1] and (np.diff(empty.astype(int)) <= 0).all()
            bounds = segmentation.passage_bounds(passage.tokens[:-1], 3, 16, align, TOKENS)
            assert batch.mask[i].sum(axis=1)[~empty].tolist() == np.diff(bounds).tolist()
        assert (batch.weight == 0).all() and known


def test_questions_and_passages_share_a_batch(tmp_path):
    """Rows of questions are those of a run without texts, and have no tokens to predict."""
    source = rows(tmp_path / "rows.jsonl")
    mixed, alone = config(source, "qa1", "novels", segments=8), config(source, "qa1", segments=8)
    loader, other = Loader(mixed, TOKENS), Loader(alone, TOKENS)
    batch = loader.batch_at(0)
    asked = batch.task == 0
    assert 0 < asked.sum() < 16
    assert (batch.next_token[asked] == -1).all() and (batch.weight[asked] > 0).any()
    assert ((batch.next_token[~asked] >= 0).any(axis=(1, 2))).all()
    assert (batch.weight[~asked] == 0).all()
    assert other.batch_at(0).next_token is None
    segments = batch.tokens.shape[1]
    sample = other.composer.sample("qa1", f"{segments}s", 0, 3)
    ours, theirs = (one.collate([sample], segments) for one in (loader, other))
    for name, value in theirs._asdict().items():
        if value is not None:
            assert np.array_equal(getattr(ours, name), value), name
    told = " ".join(
        TOKENS.decode(p[m]) for p, m in zip(batch.prompt, batch.prompt_mask, strict=True)
    )
    assert "Continue the text." in told


def test_passages_are_the_same_in_a_worker_process(tmp_path):
    loader = Loader(config(rows(tmp_path / "rows.jsonl", 200)), TOKENS)
    packed = pickle.dumps(loader.composer.tasks["novels"])
    assert len(packed) < 3000  # the arrays are mapped again, not copied
    again = pickle.loads(packed)
    for index in range(5):
        ours = loader.composer.passage("novels", "2s", 0, index)
        theirs = again.sample("train", 0, index, StoryOptions(max_tokens=32))
        assert np.array_equal(ours.tokens, theirs.tokens)
    assert not np.array_equal(
        loader.composer.passage("novels", "2s", 0, 0).tokens,
        loader.composer.passage("novels", "2s", 1, 0).tokens,
    )


def test_a_texts_task_is_no_question(tmp_path):
    data = config(rows(tmp_path / "rows.jsonl"), "qa1", "novels").data
    assert tasks.question_tasks(data) == ("qa1",) and tasks.language_tasks(data) == ("novels",)
    composer = Composer(data, TOKENS, segment_tokens=16)
    with pytest.raises(DataError, match="'novels' asks nothing.*--perplexity"):
        composer.sample("novels", "2s", 0, 0)
    with pytest.raises(DataError, match="'qa1' models no language"):
        composer.passage("qa1", "2s", 0, 0)
    with pytest.raises(TaskError, match="must be opened"):
        tasks.create("novels", data).sample("train", 0, 0, StoryOptions())
    assert tasks.guess("Where is Mary?", data) == "qa1"


# What is wrong ------------------------------------------------------------------------------------


def write(name: str, content: bytes | str):
    def make(folder):
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return folder / name

    return make


GOOD = '{"text": "A good row."}\n'
WRONG = [
    (lambda f: f / "nowhere", "there is no file or folder '.*nowhere'.*or 'builtin'"),
    (lambda f: f, "the folder .* holds no .txt and no .jsonl file"),
    (write("a.csv", "text\n"), "a.csv is neither a .txt file .* nor a .jsonl file"),
    (write("a.txt", ""), "the text of a.txt is empty: take it out"),
    (write("a.txt", " \n\n "), "the text of a.txt is empty"),
    (write("a.txt", "a"), "the text of a.txt has 1 token, but a text needs 2"),
    (write("a.txt", b"caf\xe9 and more"), r"a.txt is not UTF-8 text \(byte 0xe9.*iconv"),
    (write("a.txt", "UTF-16".encode("utf-16")), "a.txt is a binary file, or UTF-16"),
    (write("a.jsonl", f'{GOOD}{{"text": ""}}\n'), "the text of a.jsonl:2 is empty"),
    (write("a.jsonl", f'{GOOD}{{"text": "b"}}\n{GOOD}'), "the text of a.jsonl:2 has 1 token"),
    (
        write("a.jsonl", f"{GOOD}\n{GOOD[:-5]}\n"),
        r"a.jsonl, line 3 is not JSON \(.*: \{.text.: .A g",
    ),
    (write("a.jsonl", f'{GOOD}["text"]\n'), r"line 2 is no object with a field 'text': \[.text.\]"),
    (
        write("a.jsonl", f'{GOOD}{{"body": "x", "title": "y"}}\n'),
        "line 2 has no field 'text'; its fields are body, title. Name the one",
    ),
    (
        write("a.jsonl", f'{GOOD}{{"text": 7}}\n'),
        "line 2: the field 'text' holds 7, which is no text",
    ),
    (write("a.jsonl", f'{GOOD}{{"text": ["a"]}}\n'), r"line 2: the field 'text' holds \[.a.\]"),
    (write("a.jsonl", GOOD.encode() + b'{"text": "\xe9"}\n'), "line 2 is not UTF-8 .byte 10 of"),
    (write("a.jsonl", GOOD.encode("utf-16")), "line 1 is not UTF-8"),
    (write("a.jsonl", GOOD + '{"text": "half \\ud800 a"}\n'), "a.jsonl:2 holds half a character"),
    (
        write("a.jsonl", GOOD),
        "The validation split of .*novels has no text: none of the 1 of .*a.js",
    ),
    (write("a.jsonl", "\n"), "The train split of .*novels has no text: none of the 0"),
]


@pytest.mark.parametrize(("make", "sentence"), WRONG)
def test_what_is_no_text_is_named_and_leaves_nothing(tmp_path, cache, make, sentence):
    folder = tmp_path / "texts"
    folder.mkdir()
    section = Texts(train=str(make(folder)))
    with pytest.raises(DataError, match=sentence):
        for split in ("train", "validation"):
            texts.load(section, split, TOKENS, "novels")
    assert not [path for path in cache.glob("texts/*") if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"texts": {"novels": Texts()}}, "data.texts.novels.train is empty: give a folder"),
        (
            {"texts": {"my novels": Texts(train="x")}},
            "an entry 'my novels': give it a name of letters",
        ),
        (
            {"tasks": ("qa1",), "texts": {"qa1": Texts(train="x")}},
            "texts.qa1 has the name of another task",
        ),
    ],
)
def test_entries_that_cannot_be(changes, sentence):
    found = Config(data=Data(**({"tasks": ("novels",)} | changes)))
    with pytest.raises(ConfigError, match=sentence):
        validate(found)
        tasks.check(found)
