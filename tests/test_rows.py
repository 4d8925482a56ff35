"""Rows of one's own: kinds of files, layouts, splits that share nothing, lengths, errors."""

import csv
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_files import FILLER, TOKENS, config, row, rows_of, write

from rmt_jax.config import Prompt, Questions
from rmt_jax.data import compose, tasks, text_stream
from rmt_jax.data.collate import collate
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import Loader
from rmt_jax.data.rows import layouts, readers, store
from rmt_jax.data.segmentation import segment_bounds, segment_counts

pytestmark = pytest.mark.portable


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))


# Files


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    rows = [row(i) for i in range(30)]
    jsonl = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "named.json").write_text(json.dumps({"version": "1", "data": rows}))
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "dos.jsonl").write_bytes(text.replace("\n", "\r\n\r\n").encode())
    expected = [one for _, one in readers.read(jsonl)]
    assert expected == rows
    for name in ("a.json", "named.json", "a.csv", "a.tsv", "marked.jsonl", "dos.jsonl"):
        assert [one for _, one in readers.read(str(tmp_path / name))] == rows, name
    assert next(iter(readers.read(jsonl)))[0] == f"{jsonl}, line 1"
    assert list(readers.read(str(tmp_path / "a.csv")))[1][0].endswith("a.csv, line 3")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (extra 'datasets')")
    from pyarrow import parquet

    rows = [{"context": f"c {i}", "answers": {"text": ["a", f"b {i}"]}} for i in range(600)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [one for _, one in readers.read(str(tmp_path / "a.parquet"))] == rows
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"b\.parquet is not a parquet file"):
        list(readers.read(str(tmp_path / "b.parquet")))


def test_a_dataset_by_its_id_is_streamed(tmp_path):
    pytest.importorskip("datasets", reason="needs datasets (extra 'datasets')")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [row(i) for i in range(5)]
    write(folder / "train.jsonl", rows)
    assert [one for _, one in readers.read(f"hub:{folder}:train")] == rows
    with pytest.raises(DataError, match="cannot be had: .*test"):
        list(readers.read(f"hub:{folder}:test"))


def test_a_tfds_set_that_prepare_wrote_is_read_without_tensorflow(tmp_path):
    from rmt_jax import prepare

    words = ["--out", str(tmp_path), "--tasks", "qa1", "--lengths", "0k", "--samples", "5"]
    assert prepare.main(words) == 0
    code = (
        "import sys\n"
        "from rmt_jax.data.rows import readers\n"
        f"found = list(readers.read('tfds:{tmp_path}/babilong/0k:qa1'))\n"
        "assert len(found) == 5 and set(found[0][1]) >= {'input', 'question', 'target'}\n"
        "assert isinstance(found[0][1]['input'], str) and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    source = Questions(test=f"tfds:{tmp_path}/babilong/0k:qa1", layout="babilong")
    assert all(text.question.startswith("Where is") for text in rows_of(source, "test"))


# Layouts

RECORDS = [
    (
        "babilong",
        {"input": "A  b\nc.", "question": "Who?", "target": "Ann"},
        ("A b c.", "Who?", ("Ann",)),
    ),
    (
        "squad",
        {
            "context": "c",
            "question": "q",
            "answers": {"text": ["x", "x", "y"], "answer_start": [1]},
        },
        ("c", "q", ("x", "y")),
    ),
    (
        "longbench",
        {"context": "c", "input": "q", "answers": ["x", "y"], "length": 7},
        ("c", "q", ("x", "y")),
    ),
    ("plain", {"context": "c", "question": "q", "answer": 3}, ("c", "q", ("3",))),
    (
        "plain",
        {"context": "c", "question": "q", "answer": [True, "no"]},
        ("c", "q", ("true", "no")),
    ),
]


@pytest.mark.parametrize("layout, record, expected", RECORDS)
def test_layouts(layout, record, expected):
    (found,) = layouts.rows(record, "here", Questions(layout=layout))
    assert found[1:4] == expected


def test_squad_as_its_files_nest_it():
    nested = {
        "title": "t",
        "paragraphs": [
            {"context": "c", "qas": [{"id": "1", "question": "q", "answers": [{"text": "x"}]},
                                     {"id": "2", "question": "r", "answers": []}]}
        ],
    }  # fmt: skip
    first, second = layouts.rows(nested, "here", Questions(layout="squad"))
    assert first[1:] == ("c", "q", ("x",), "1") and second[1:] == ("c", "r", (), "2")


def test_fields_by_other_names_and_one_question_for_all(tmp_path):
    given = [{"ticket": {"body": f"text {i}"}, "team": "a"} for i in range(20)]
    source = Questions(
        train=write(tmp_path / "a.jsonl", given),
        fields={"context": "ticket.body", "answer": "team"},
        question="Which team?",
    )
    first = rows_of(source)[0]
    assert (first.question, first.answers) == ("Which team?", ("a",))


# Splits


def test_without_files_of_their_own_validation_and_test_share_no_context_with_train(tmp_path):
    rows = [dict(row(i // 3), question=f"Question {i}?") for i in range(600)]
    source = Questions(train=write(tmp_path / "a.jsonl", rows))
    found = {split: rows_of(source, split) for split in ("train", "validation", "test")}
    asked = [text.question for texts in found.values() for text in texts]
    assert sorted(asked) == sorted(one["question"] for one in rows)  # each once
    held = {split: store.load("own", source, TOKENS).splits[split] for split in found}
    contexts = {
        split: {TOKENS.decode(rows.tokens(i)) for i in range(len(rows))}
        for split, rows in held.items()
    }
    assert not contexts["train"] & (contexts["validation"] | contexts["test"])
    assert not contexts["validation"] & contexts["test"]
    assert all(15 < len(contexts[split]) * 3 < 120 for split in ("validation", "test"))
    # A context with three questions is kept once.
    assert len(held["train"]._starts) - 1 == len(contexts["train"])


def test_files_of_their_own_and_what_stands_twice_is_said(tmp_path):
    rows = [row(i) for i in range(50)]
    source = Questions(
        train=write(tmp_path / "a.jsonl", [dict(r, id=i // 2) for i, r in enumerate(rows)]),
        validation=write(tmp_path / "b.jsonl", [*rows[:3], row(70), row(70)]),
        test=write(tmp_path / "c.jsonl", [dict(rows[4], question="Another?"), row(80)]),
    )
    notes = store.load("own", source, TOKENS).notes
    assert notes[0] == "own: 50 train, 5 validation, 2 test rows, 56 contexts."
    assert "1 validation rows are identical with another row of validation." in notes
    assert any(
        n.startswith("3 rows and 3 contexts stand in train and in validation") for n in notes
    )
    assert any(n.startswith("0 rows and 1 contexts stand in train and in test") for n in notes)
    assert any("25 rows have the id of another row" in n for n in notes)


def test_rows_without_an_answer_and_too_long_ones_are_left_out_by_line(tmp_path):
    rows = [row(i) for i in range(60)]
    rows[7]["answer"], rows[9]["answer"] = [], "a very long answer of many words indeed it is"
    source = Questions(train=write(tmp_path / "a.jsonl", rows), answer_tokens=4)
    loader = Loader(config(source), TOKENS)
    said = "\n".join(loader.describe())
    assert re.search(r"1 rows without an answer are left out \(.*a\.jsonl, line 8\)", said)
    assert re.search(r"1 \w+ rows with an answer of more than 4 tokens .*a\.jsonl, line 10\)", said)
    assert loader.composer.answer_room == 5
    free = Loader(config(dataclasses.replace(source, answer_tokens=0)), TOKENS)
    assert free.composer.answer_room == len(TOKENS.sentence(rows[9]["answer"])) + 1
    resolved = tasks.resolve(config(Questions(train=source.train)), TOKENS)
    assert resolved.data.questions["own"].answer_tokens == free.composer.answer_room - 1


# Lengths


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 400), st.integers(1, 16), st.integers(16, 40), st.sampled_from(("left", "right"))
)
def test_counts_of_segments_are_those_of_their_bounds(context, tail, segment, align):
    (count,) = segment_counts(np.array([context]), np.array([tail]), segment, align)
    assert count == len(segment_bounds(context, tail, segment, align)) - 1


@pytest.fixture
def many(tmp_path) -> str:
    """200 rows of 1 to 24 sentences."""
    return write(tmp_path / "many.jsonl", [row(i, 1 + i % 24) for i in range(200)])


@pytest.mark.parametrize("align", ["left", "right", "sentence"])
def test_segments_of_documents_and_bands_that_take_each_once(many, align):
    loader = Loader(config(Questions(train=many), 16, align=align), TOKENS)
    composer = loader.composer
    counts = composer.finite.segments("own")
    for index, number in enumerate(composer.finite.rows("own", "all")[:40]):
        sample = composer.sample("own", "all", 0, index)
        assert counts[number] == len(composer._bounds(sample)) - 1
    bands = [composer.finite.rows("own", f"{s}s") for s in (1, 2, 4, 8, 16)]
    assert sorted(np.concatenate(bands)) == list(range(len(counts)))
    assert all(
        counts[band].max(initial=0) <= s for band, s in zip(bands, (1, 2, 4, 8, 16), strict=True)
    )


def test_documents_are_drawn_alike_often_and_batches_hold_them_whole(many):
    loader = Loader(config(Questions(train=many), 16), TOKENS)
    counts = loader.composer.finite.segments("own")
    lengths = [loader._length(loader.stages[0], s) for s in loader.stages[0].buckets]
    expected = [len(loader._rows("own", one)) / len(counts) for one in lengths]
    assert np.allclose(loader._shares[0][0], expected) and np.isclose(sum(expected), 1)
    # 24 lengths, each of a 24th of the rows: how often each is drawn, in all batches.
    drawn = np.zeros(26)
    for step in range(loader.steps):
        batch = loader.batch_at(step)
        assert batch.tokens.shape[1] in (1, 2, 4, 8, 16)
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
            drawn[TOKENS.decode(tokens[mask]).count("The weather") + 1] += 1
    halves = drawn[0::2] + drawn[1::2]
    assert drawn.sum() == 400 and halves[halves > 0].min() > 10 and halves.max() < 70


def test_every_text_of_a_batch_is_a_row_with_its_question_and_answer(many):
    given = {" ".join(one["context"].split()): one for _, one in readers.read(many)}
    loader = Loader(config(Questions(train=many), 16, align="sentence"), TOKENS)
    for step in range(5):
        batch = loader.batch_at(step)
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
            text = TOKENS.decode(tokens[mask]).strip()
            context, _, rest = text.partition(" Where does it go?<answer> ")
            assert rest == f"{given[context]['answer']}<end>"


def test_mixed_with_bAbI_the_shares_are_those_asked_for(many):
    both = config(Questions(train=many), 4, tasks=("own", "qa1"), weights=(3.0, 1.0))
    loader = Loader(both, TOKENS)
    drawn = np.concatenate([loader.batch_at(step).task for step in range(50)])
    assert 0.65 < (drawn == 0).mean() < 0.85
    batches = list(loader.evaluation_batches(4, 2, 16))
    assert {int(t) for batch in batches for t in batch.task} == {0, 1}


@pytest.mark.parametrize("longer, kept", [("cut_end", "start"), ("cut_beginning", "end")])
@pytest.mark.parametrize("align", ["left", "sentence"])
def test_longer_documents_are_cut_as_told_and_counted(many, longer, kept, align):
    loader = Loader(config(Questions(train=many, longer=longer), 2, align=align), TOKENS)
    counts = loader.composer.finite.segments("own")
    (said,) = [line for line in loader.describe() if "the longest of training" in line]
    assert f"{int((counts > 2).sum()):,} train rows take more than 2 segments" in said
    whole = {TOKENS.decode(loader.composer.sample("own", "all", 0, i).context)
             for i in range(len(counts))}  # fmt: skip
    cut = 0
    length = loader._document_length("own", loader._length(loader.stages[0], 2))
    for index in range(60):
        sample = loader.composer.sample("own", length, 0, index)
        assert len(loader.composer._bounds(sample)) - 1 <= 2
        text = TOKENS.decode(sample.context)
        assert any((one.startswith if kept == "start" else one.endswith)(text) for one in whole)
        cut += text not in whole
    assert cut > 20


def test_hidden_rows_have_any_length_and_all_their_sentences(tmp_path):
    given = [row(i, 3) for i in range(60)]
    source = Questions(train=write(tmp_path / "a.jsonl", given), hide=True)
    composer = compose.Composer(config(source).data, TOKENS, "validation", segment_tokens=64)
    for length in ("0k", "8s", "1k"):
        sample = composer.sample("own", length, 1, 2)
        text = TOKENS.decode(sample.context)
        assert len(sample.facts) == 3 and sample.context.size <= 8 * 64 or length != "8s"
        places = [TOKENS.decode(sample.context[a:b]).strip() for a, b in sample.facts]
        assert " ".join(places) in {" ".join(one["context"].split()) for one in given}
        assert f"goes {sample.answer}." in text
    changed = compose.Composer(
        config(source).data, TOKENS, "validation", segment_tokens=64, change="shuffled"
    )
    assert changed.sample("own", "1k", 1, 2).answer == composer.sample("own", "1k", 1, 2).answer


# The store


def test_a_very_long_line_is_read_in_pieces_with_the_same_tokens(tmp_path):
    text = FILLER * 45_000  # 2.6 MB
    rows = [dict(row(i), context=text if i == 3 else row(i)["context"]) for i in range(40)]
    source = Questions(train=write(tmp_path / "a.jsonl", rows))
    found = store.load("own", source, TOKENS).splits
    (tokens,) = [
        rows.tokens(int(i))
        for rows in found.values()
        for i in np.flatnonzero(rows.context_tokens > 1000)
    ]
    short = np.asarray(TOKENS.encode(" " + FILLER.strip()), np.int32)
    assert len(tokens) == 45_000 * len(short) and np.array_equal(tokens[: len(short)], short)
    assert np.array_equal(tokens, text_stream.encode(TOKENS, " " + " ".join(text.split())))


def test_a_changed_file_is_read_again_and_a_composer_travels(tmp_path):
    path = tmp_path / "a.jsonl"
    source = Questions(train=write(path, [row(i) for i in range(40)]))
    first = Loader(config(source), TOKENS)
    again = pickle.loads(pickle.dumps(first.composer))
    one, two = (c.sample("own", "1s", 0, 3) for c in (first.composer, again))
    assert np.array_equal(one.context, two.context) and one.answers == two.answers
    write(path, [row(i) for i in range(100, 150)])
    os.utime(path, ns=(1, 1))
    store.load.cache_clear()
    assert len(rows_of(source)) != 0 and "Ticket 1" in TOKENS.decode(
        store.load("own", source, TOKENS).splits["train"].tokens(0)
    )


def test_killed_in_the_middle_nothing_half_made_is_taken(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [row(i, 9) for i in range(30_000)])
    code = (
        "from rmt_jax.config import Questions\nfrom rmt_jax.data import tokenizer\n"
        "from rmt_jax.data.rows import store\nprint('go', flush=True)\n"
        f"store.load('own', Questions(train={str(path)!r}), tokenizer.load())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").glob("rows/.*/made/train/tokens")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        child.kill()
    assert not [p for p in (tmp_path / "cache" / "rows").iterdir() if not p.name.startswith(".")]
    write(path, [row(i) for i in range(50)])
    assert len(rows_of(Questions(train=str(path)))) > 30


def test_collated_rows_learn_the_first_answer_and_know_the_others(tmp_path):
    rows = [dict(row(i), answer=["north", "up"]) for i in range(40)]
    composer = compose.Composer(
        config(Questions(train=write(tmp_path / "a.jsonl", rows))).data, TOKENS, segment_tokens=48
    )
    sample = composer.sample("own", "all", 0, 0)
    assert sample.answers == ("north", "up")
    batch = collate(
        [sample], TOKENS, segments=1, segment_tokens=48, answer_room=composer.answer_room,
        tasks=composer.tasks, prompt=Prompt(),
    )  # fmt: skip
    assert TOKENS.decode(batch.answer[0, 0, 0][batch.weight[0, 0, 0] > 0]) == " north<end>"
