"""The synthetic suites: solvers that read nothing but the text find the stated answers; texts fill
their length; splits share nothing."""

import dataclasses
import json
import os
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_texts import NEEDLES, RULER, SEGMENT, SUITES, TOKENS, composer

from rmt_jax import prepare
from rmt_jax.config import Config, Data, Model, Prompt, Stage
from rmt_jax.data import draws, tasks, tokenizer
from rmt_jax.data.loader import Loader
from rmt_jax.data.story import StoryOptions

SHARED = os.environ.get("RMT_JAX_SHARED")
# Tokens that a text may lack: what the next pair, word or round of words would have taken.
GRANULES = {"recall": 6, "kv_retrieval": 100, "cwe": 40, "fwe": 40}


# Solvers: each knows the form of the text, and nothing of the task's code.


def recall(text, question):
    held = {}
    for pair in re.findall(r"[^.]+\.", text):
        key, value = pair.strip().removesuffix(".").split(": ")
        held[key] = value
    return [held[question]]


def key_value(text, question):
    return [json.loads(text)[re.findall('"(.*)"', question)[0]]]


def sequence(text, question):
    symbols = re.findall(r"Sequence: ([^.]*)\.", text)[0].split()
    return [" ".join(symbols[::-1] if "backwards" in question else symbols)]


def needles(text, question):
    found = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text)
    asked = re.findall(r"for (.+) mentioned", question)[0]
    keys = re.split(r", and |, ", asked)
    return [value for key in keys for held, value in found if held == key]


def tracking(text, question):
    value = re.findall(r"\d+", question)[0]
    equal, order = {value}, []
    for name, right in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
        if right in equal:
            equal.add(name)
            order.append(name)
    return order


def common_words(text, question):
    count = Counter(re.findall(r"\d+\. (\S+)", text))
    number = int(re.findall(r"\d+", question)[0])
    return sorted(word for word, _ in count.most_common(number))


def frequent_words(text, question):
    count = Counter(word for word in text.split() if word != "...")
    return [word for word, _ in count.most_common(3)]


SOLVERS = {
    **dict.fromkeys(NEEDLES, needles),
    "recall": recall,
    "kv_retrieval": key_value,
    "copy": sequence,
    "reverse": sequence,
    "vt": tracking,
    "cwe": common_words,
    "fwe": frequent_words,
}


def check(made, sample):
    text = made.tokenizer.decode(sample.context).strip()
    found = SOLVERS[sample.task](text, sample.question)
    assert ", ".join(found) == sample.answer, (text[:500], sample.question)
    assert sample.parts in ((), tuple(found))
    assert (*made.tokenizer.sentence(sample.answer),) == sample.answer_ids
    return text


@pytest.mark.parametrize("name", SUITES)
def test_the_text_alone_gives_the_answer(name):
    made = composer(name)
    for length in ("0k", "900", "4k", "1s", "3s"):
        for index in range(6):
            sample = made.sample(name, length, seed=index % 2, index=index)
            check(made, sample)


@pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED is not set")
@pytest.mark.parametrize("name", SUITES)
def test_another_tokenizer_reads_the_same(name):
    made = composer(name, words=tokenizer.load(Path(SHARED, "data", "gpt2_tokenizer")))
    for length in ("700", "2s"):
        for index in range(3):
            sample = made.sample(name, length, 0, index)
            check(made, sample)
            if length == "700":
                assert 700 - GRANULES.get(name, 1) < len(sample.context) <= 700


@pytest.mark.parametrize("name", SUITES)
def test_texts_fill_their_length(name):
    made = composer(name)
    for length in (500, 1000, 3700):
        for index in range(4):
            tokens = len(made.sample(name, str(length), 0, index).context)
            assert length - GRANULES.get(name, 1) < tokens <= length
            if name not in GRANULES:  # the last sentence is cut to fit
                assert tokens == length
    for segments in (1, 2, 4):  # question and answer count too
        sample = made.sample(name, f"{segments}s", 0, 1)
        tokens = len(sample.context) + len(sample.question_ids) + 1 + made.answer_room
        full = segments * SEGMENT
        assert tokens <= full
        if segments == 1:
            assert tokens > full - GRANULES.get(name, 1)


def test_a_recall_text_is_full_to_the_last_pair():
    """With the built-in tokenizer and keys of one symbol a pair takes four tokens."""
    made = composer("recall", task_options={"recall": {"key_size": 1, "key_symbols": 1800}})
    for length in range(40, 60):
        assert len(made.sample("recall", str(length), 0, 0).context) == length // 4 * 4
    every = {"key_size": 1, "key_symbols": 9, "rewrites": 0.0}  # each key there is, once
    assert (
        len(composer("recall", task_options={"recall": every}).sample("recall", "39", 0, 0)[1])
        == 36
    )
    cut = composer("recall", segment=8, task_options=made.tasks["recall"].data.task_options)
    for segments in (1, 2, 7):  # and a question with its answer as many as a pair
        assert len(cut.sample("recall", f"{segments}s", 0, 0).facts) == 2 * segments - 1
        asked = cut.sample("recall", f"{segments}s", 0, 0, StoryOptions(question_rate=1.0))
        assert len(asked.facts) == segments and len(asked.context_questions) == segments - 1
    long = made.sample("recall", "6000", 0, 0)
    assert len(long.story.facts) == 1500 and len(long.facts) == 1500


@given(
    index=st.integers(0, 10**6),
    rewrites=st.sampled_from((0.0, 0.3, 0.9)),
    key_size=st.integers(1, 3),
    value_size=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_the_last_value_wins(index, rewrites, key_size, value_size):
    options = {"key_size": key_size, "value_size": value_size, "rewrites": rewrites, "pairs": 12}
    data = Data(tasks=("recall",), task_options={"recall": options})
    story = tasks.create("recall", data).sample("train", 0, index, StoryOptions())
    assert len(story.facts) == 12
    held = {}
    for fact in story.facts:
        key, value = fact.removesuffix(".").split(": ")
        assert len(key.split()) == key_size and len(value.split()) == value_size
        assert held.get(key) != value, "a rewrite changes the value"
        held[key] = value
    assert (len(held) == 12) if rewrites == 0 else (rewrites == 0.3 or len(held) < 12)
    assert story.answer == held[story.question]
    last = max(i for i, fact in enumerate(story.facts) if fact.startswith(f"{story.question}:"))
    assert story.supporting == (last,)


def test_rewrites_are_as_frequent_as_said():
    data = Data(tasks=("recall",), task_options={"recall": {"pairs": 400, "rewrites": 0.25}})
    facts = tasks.create("recall", data).sample("train", 0, 0, StoryOptions()).facts
    again = 400 - len({fact.split(":")[0] for fact in facts})
    assert 70 < again < 130


def test_every_key_is_asked_alike():
    data = Data(tasks=("recall",), task_options={"recall": {"pairs": 4, "rewrites": 0.0}})
    task = tasks.create("recall", data)
    asked = Counter(task.sample("train", 0, i, StoryOptions()).supporting[0] for i in range(800))
    assert set(asked) == set(range(4)) and min(asked.values()) > 150


def test_questions_on_the_way_ask_for_what_holds_there():
    data = Data(tasks=("recall",), task_options={"recall": {"key_size": 1}})
    task, asked = tasks.create("recall", data), 0
    for index in range(50):
        for final_only in (False, True):
            options = StoryOptions((4, 9), question_rate=0.7, final_question_only=final_only)
            story = task.sample("train", 0, index, options)
            assert 4 <= len(story.facts) <= 9
            for number, question, answer in story.intermediate_questions:
                text = " ".join(story.facts[: number + 1])
                assert recall(text, question) == [answer]
                assert question == story.question or not final_only
                asked += 1
    assert asked > 200


def test_batches_hold_pairs_questions_and_answers():
    config = Config(
        model=dataclasses.replace(Model(), segment_tokens=32),
        prompt=Prompt(source="none"),
        data=Data(
            tasks=("recall",), background="none",
            task_options={"recall": {"key_size": 1, "key_symbols": 200}},
        ),
        stages=(Stage(4, 5, 8, 1e-3, question_rates=(1.0,)),),
    )  # fmt: skip
    loader, asked = Loader(config, TOKENS), 0
    for step in range(5):
        batch = loader.batch_at(step)
        for i in range(len(batch.tokens)):
            text = TOKENS.decode(batch.tokens[i][batch.mask[i]])
            known = re.sub(r" [a-z]+<answer> [a-z]+<end>", "", text).strip()
            question, answer = re.findall(r" ([a-z]+)<answer> ([a-z]+)<end>$", text)[0]
            assert recall(known, question) == [answer]
            asked += int((batch.weight[i].sum(axis=-1) > 0).sum())
    assert asked > 5 * 8 * 2


@pytest.mark.parametrize("name", ["recall", "kv_retrieval", "copy", "niah_single_1", "vt", "cwe"])
def test_splits_share_no_text(name):
    small = {"recall": {"key_size": 1, "key_symbols": 8, "value_symbols": 4}}
    small |= {"copy": {"size": 2, "symbols": 8}, "kv_retrieval": {"digits": 4}}
    found = {}
    for split in ("train", "validation", "test"):
        made = composer(name, split=split, background="none", task_options=small)
        texts = set()
        for index in range(60):
            sample = made.sample(name, "30" if name == "recall" else "0k", 0, index)
            text = made.tokenizer.decode(sample.context)
            texts.add(sample.parts if name == "cwe" else text)
        found[split] = texts
    assert all(len(texts) > 3 for texts in found.values())
    assert not found["train"] & found["validation"]
    assert not (found["train"] | found["validation"]) & found["test"]


def test_samples_do_not_depend_on_their_order():
    made, again = composer(), pickle.loads(pickle.dumps(composer()))
    jobs = [
        (name, length, index) for name in SUITES for length in ("0k", "800") for index in (3, 1)
    ]
    first = {job: made.sample(job[0], job[1], 5, job[2]) for job in jobs}
    for job in reversed(jobs):
        sample = again.sample(job[0], job[1], 5, job[2])
        assert np.array_equal(sample.context, first[job].context)
        assert sample.question == first[job].question and sample.answer == first[job].answer
    for name in SUITES:
        assert first[name, "800", 3].question_ids and first[name, "800", 3].answer_ids
        different = first[name, "800", 3], first[name, "800", 1]
        assert not np.array_equal(different[0].context, different[1].context)


def test_uuids_are_of_version_4():
    from uuid import UUID

    made = composer("kv_retrieval").sample("kv_retrieval", "3000", 0, 0)
    for text in re.findall(r"[0-9a-f-]{36}", TOKENS.decode(made.context)):
        assert UUID(text).version == 4 and str(UUID(text)) == text
    assert draws.uuid("f" * 32) == "ffffffff-ffff-4fff-bfff-ffffffffffff"


def test_haystacks_are_those_of_the_table():
    made = composer(*RULER)
    text = {name: TOKENS.decode(made.sample(name, "2000", 0, 0).context) for name in RULER}
    for name in ("niah_single_1", "vt"):
        rest = re.sub(r"One of .*?\d\.|VAR .*?\.", "", text[name])
        assert re.fullmatch(r"(The|grass|is|green|sky|blue|sun|yellow|Here|we|go|There|and|back|"
                            r"again|\W)+", rest)  # fmt: skip
    for name in ("niah_multikey_2", "niah_multikey_3"):
        assert text[name].count("One of the special magic") > 15
    for name in ("niah_single_2", "niah_single_3", "niah_multivalue"):
        assert "The grass is green" not in text[name]
    keys = re.findall(r"magic numbers for (\S+) is", text["niah_multikey_1"])
    assert len(set(keys)) == 4
    changed = composer("niah_single_1", task_options={"niah_single_1": {"haystack": "background"}})
    assert "The grass is green" not in TOKENS.decode(
        changed.sample("niah_single_1", "900", 0, 0)[1]
    )


def test_counts_of_words_are_rulers():
    made = composer("cwe", "fwe")
    for length, often, others in (("1000", 6, 1), ("4000", 30, 3)):
        sample = made.sample("cwe", length, 0, 0)
        listed = re.findall(r"(\d+)\. (\S+)", TOKENS.decode(sample.context))
        assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
        count = Counter(word for _, word in listed)
        assert all(count.pop(word) == often for word in sample.parts)
        assert set(count.values()) == {others}
    sample = made.sample("fwe", "20000", 0, 0)
    count = Counter(TOKENS.decode(sample.context).split())
    ranks = [count["..."], *(count[word] for word in sample.parts)]
    whole = ranks[0] * np.pi**2 / 6  # the sum of 1 / k^2
    for k, found in enumerate(ranks, start=1):
        assert found == pytest.approx(whole * 6 / np.pi**2 / k**2, abs=1)


def test_pairs_hide_in_background():
    made = composer("recall", task_options={"recall": {"pairs": 3, "key_size": 1}})
    sample = made.sample("recall", "600", 0, 0)
    assert len(sample.context) == 600 and len(sample.facts) == 3
    for (start, end), fact in zip(sample.facts, sample.story.facts, strict=True):
        assert TOKENS.decode(sample.context[start:end]) == f" {fact}"


def test_prepare_writes_them(tmp_path):
    words = ["--out", str(tmp_path), "--format", "json", "--tasks", "recall,niah_multivalue,cwe"]
    assert exit_code(prepare.main, [*words, "--lengths", "1k", "--samples", "3"]) == 0
    for name in ("recall", "niah_multivalue", "cwe"):
        for row in json.loads((tmp_path / name / "1k.json").read_text()):
            found = SOLVERS[name](row["input"], row["question"])
            assert ", ".join(found) == row["target"]
