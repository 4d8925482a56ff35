"""Composition: exact budgets, the authors' rules, splits that share nothing, changes by name."""

import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rmt_jax.config import Data
from rmt_jax.data import perturb, tasks, tokenizer, words
from rmt_jax.data.babi import stories
from rmt_jax.data.babi.files import BabiError
from rmt_jax.data.compose import Composer
from rmt_jax.data.corpus import background, documents
from rmt_jax.data.lengths import Length
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import IntermediateQuestion, NoStory, Story, StoryOptions

TOKENS = tokenizer.load()
TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
SHARED = os.environ.get("RMT_JAX_SHARED")


@pytest.fixture(scope="module")
def composer():
    return Composer(Data(TASKS), TOKENS, "train", segment_tokens=128)


@pytest.mark.parametrize(
    ("text", "tokens", "whole"),
    [("0k", 0, False), ("1k", 700, False), ("32k", 31_700, False), ("10M", 9_999_700, False),
     ("4s", 512, True), ("300", 300, False)],
)  # fmt: skip
def test_lengths(text, tokens, whole):
    assert Length.parse(text, 128) == Length(text, tokens, whole)


@pytest.mark.parametrize("text", ["", "4q", "-1k", "4 k", "1.5k", "k"])
def test_a_length_that_is_none(text):
    with pytest.raises(ValueError, match="Unknown length"):
        Length.parse(text, 128)
    with pytest.raises(ValueError, match="0 segments"):
        Length.parse("0s", 128)


@pytest.mark.parametrize("task", ["qa1", "qa3", "qa5"])
def test_a_story_with_long_names_is_told_in_fewer_facts(task):
    """A training that asks for many facts must not end at a short text with made-up names."""
    data = Data(TASKS, align="sentence", new_names=1.0)
    composer = Composer(data, TOKENS, segment_tokens=96)
    options = StoryOptions((20, 60), ("people", "places", "objects"), question_rate=1.0)
    for index in range(40):
        made = composer.sample(task, "1s", 0, index, options, hidden=False)
        assert 8 <= len(made.facts) <= 12


@pytest.mark.parametrize("length", ["0k", "400", "1k", "2s", "8k"])
def test_a_sample_has_its_budget_and_its_facts_in_order(composer, length):
    for task in ("qa1", "qa2", "qa4", "qa5"):
        for index in range(8):
            s = composer.sample(task, length, 0, index)
            budget = Length.parse(length, 128)
            if budget.whole:
                assert (
                    len(s.context) + len(s.question_ids) + 1 + composer.answer_room == budget.tokens
                )
            elif budget.tokens:
                assert len(s.context) == budget.tokens
                assert len(s.facts) <= budget.tokens // 8
            else:
                assert len(s.context) == sum(b - a for a, b in s.facts)
            starts = [a for a, _ in s.facts]
            assert starts == sorted(starts)
            told = [TOKENS.decode(s.context[a:b])[1:] for a, b in s.facts]
            assert tuple(told) == s.story.facts
            supporting = [starts[i] for i in s.story.supporting]
            assert [d * len(s.context) for d in s.depths] == pytest.approx(supporting)


def test_what_is_not_facts_is_consecutive_background(composer):
    for index in range(10):
        s = composer.sample("qa1", "1k", 3, index)
        rest = np.ones(len(s.context), bool)
        for a, b in s.facts:
            rest[a:b] = False
        hay = s.context[rest]
        whole = np.asarray(composer.background.tokens, np.int32)
        twice = np.concatenate([whole, whole[: len(hay)]])
        starts = [int(i) for i in composer.background.starts[:-1]]
        assert any(np.array_equal(twice[i : i + len(hay)], hay) for i in starts)


def test_facts_stand_between_sentences(composer):
    for index in range(10):
        s = composer.sample("qa2", "1k", 0, index)
        facts = {i for a, b in s.facts for i in range(a, b)}
        last = max(set(range(len(s.context))) - facts)  # there a sentence may have been cut
        for a in (a for a, _ in s.facts if 0 < a < last):
            assert TOKENS.decode(s.context[:a])[-1] in ".?!:\"')”’;,"


def test_samples_are_pure_in_their_address(composer):
    again = Composer(Data(TASKS), tokenizer.load(), "train", segment_tokens=128)
    addresses = [("qa1", "1k", 0, 5), ("qa3", "2k", 1, 5), ("qa5", "2s", 0, 2**33)]
    first = [composer.sample(*a) for a in addresses]
    for a, s in reversed(list(zip(addresses, first, strict=True))):
        t = again.sample(*a)
        assert np.array_equal(s.context, t.context) and s.question == t.question
    other = composer.sample("qa1", "1k", 0, 6)
    assert not np.array_equal(first[0].context, other.context)


def test_splits_share_no_story():
    seen: dict[str, set] = {}
    for split in documents.SPLITS:
        composer = Composer(Data(TASKS, background="none"), TOKENS, split)
        seen[split] = set()
        for task in ("qa1", "qa4"):  # the tasks with the fewest different stories
            for seed in (0, 1):
                for index in range(100):
                    s = composer.sample(task, "0k", seed, index, StoryOptions(facts=(2, 4)))
                    assert documents.split_of_story(s.story.facts) == split
                    seen[split].add(s.story.facts)
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_splits_share_no_background():
    parts = [background.load("builtin", TOKENS, split) for split in documents.SPLITS]
    assert [len(b.tokens) > 4000 for b in parts] == [True] * 3
    sentences = [
        {b.tokens[i:j].tobytes() for i, j in zip(b.starts[:-1], b.starts[1:], strict=True)}
        for b in parts
    ]
    train, validation, test = sentences
    # A handful of stock sentences stands in more than one topic of the built-in text.
    assert len(train & validation) < 0.02 * len(validation)
    assert len(train & test) < 0.02 * len(test)


def test_dense_questions_stand_after_their_fact(composer):
    options = StoryOptions(facts=(4, 8), question_rate=1.0)
    seen = 0
    for index in range(20):
        s = composer.sample("qa1", "2s", 0, index, options)
        ends = [b for _, b in s.facts]
        for planted in s.context_questions:
            assert s.context[planted.answer_start] == TOKENS.answer
            right = tuple(
                s.context[planted.answer_start + 1 : planted.answer_start + 1 + len(planted.answer)]
            )
            assert right == planted.answer and right[-1] == TOKENS.end
            # The answer is the last place of the person whom the question names.
            facts = sum(end <= planted.answer_start for end in ends)
            person = TOKENS.decode(s.context[: planted.answer_start]).split()[-1].rstrip("?")
            told = [f for f in s.story.facts[:facts] if f.startswith(person)]
            assert told[-1].rstrip(".").split()[-1] == TOKENS.decode(planted.answer[:-1]).strip()
            seen += 1
    assert seen > 60


def test_a_window_holds_all_facts():
    for low, high in ((0.0, 0.25), (0.4, 0.6), (0.75, 1.0)):
        composer = Composer(Data(TASKS), TOKENS, "train", window=(low, high))
        s = composer.sample("qa1", "4k", 0, 1)
        facts = sum(b - a for a, b in s.facts)
        for i, (a, _) in enumerate(s.facts):
            inside = (a - sum(y - x for x, y in s.facts[:i])) / (len(s.context) - facts)
            assert low <= inside <= high
    tight = Composer(Data(TASKS), TOKENS, "train", window=(0.5, 0.5001))
    for index in range(20):  # no gap is in there: the one nearest to it takes all facts
        s = tight.sample("qa1", "300", 0, index)
        ends = [a == b for (_, a), (b, _) in zip(s.facts, s.facts[1:], strict=False)]
        assert all(ends) and 0.2 < s.facts[0][0] / len(s.context) < 0.8


def test_room_that_cannot_do(composer):
    with pytest.raises(ValueError, match="room for 1 facts"):
        composer.sample("qa1", "10", 0, 0)
    with pytest.raises(ValueError, match="no such task"):
        composer.sample("qa99", "1k", 0, 0)


ELSEWHERE = ("other_background", "other_description")  # not of these tasks and texts


@pytest.mark.parametrize("change", [c for c in perturb.PERTURBATIONS if c not in ELSEWHERE])
def test_every_change_keeps_the_budget_and_the_support(change):
    composer = Composer(Data(TASKS), TOKENS, "validation", change=change)
    for index in range(3):
        s = composer.sample("qa2", "1k", 0, index)
        assert len(s.context) == 700
        told = " ".join(s.story.facts[i] for i in s.supporting)
        asked = s.question.rstrip("?").split()[-1]
        if change == "absent":
            assert s.answer == "unknown" and asked not in " ".join(s.story.facts)
        else:
            assert asked in told and s.answer in told
            assert len(s.answer_ids) < composer.answer_room


def test_changes_change():
    def text(change, index=0):
        composer = Composer(Data(TASKS), TOKENS, "validation", change=change)
        return composer.sample("qa1", "1k", 0, index)

    plain = text("")
    for change in ("new_people", "new_places", "distractors", "shuffled", "typos"):
        assert not np.array_equal(text(change).context, plain.context), change
    assert text("new_places").answer not in TOKENS.decode(plain.context)
    renamed = text("new_names").story
    told = re.findall(r"\w+", f"{' '.join(renamed.facts)} {renamed.question} {renamed.answer}")
    assert not set(told) & set(words.every_official())
    assert len(text("distractors").facts) > len(plain.facts)
    back = Story(
        "qa11", ("Mary moved to the garden.", "Then she went to the office."),
        "Where is Mary?", "office", (0, 1),
    )  # fmt: skip
    for k in range(20):  # 'she' is whom the fact before names
        told = perturb.story("distractors", back, AddressedRng(0, k))
        assert told.supporting[1] == told.supporting[0] + 1 and told.facts[-1] == back.facts[1]
    assert perturb.description("missing_description", tasks.create("qa1", Data()), 0) == ""
    told = {
        perturb.description(c, tasks.create("qa1", Data()), 1)
        for c in ("paraphrase", "wrong_description")
    }
    assert len(told) == 2 and tasks.create("qa1", Data()).description not in told
    with pytest.raises(ValueError, match="no perturbation 'upside_down'"):
        text("upside_down")
    with pytest.raises(ValueError, match="name a folder"):
        text("other_background")


def woven(composer, count: int, asks: set[int], tokens: int, index: int):
    """A story of `count` facts that is asked after those numbered in `asks`, as a text of `tokens`:
    facts, questions on the way, the text."""
    facts = tuple(f"Mary went to the room number {i}." for i in range(count))
    on_the_way = tuple(
        IntermediateQuestion(i, f"Which {i}?", str(i)) for i in sorted(asks) if i < count - 1
    )
    story = Story("qa1", facts, "Where is Mary?", "room", (count - 1,), on_the_way)

    class One(tasks.Task):
        name = "qa1"

        def sample(self, *_):
            return story

    one = Composer.__new__(Composer)
    one.__dict__.update(composer.__dict__, tasks={"qa1": One(Data())})
    s = one.sample("qa1", str(tokens), 0, index)
    assert len(s.context) == tokens
    assert [TOKENS.decode(s.context[a:b]) for a, b in s.facts] == [f" {f}" for f in facts]
    return s, on_the_way


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 12),
    asks=st.sets(st.integers(0, 11)),
    tokens=st.integers(260, 900),  # room for twelve facts and eleven questions
    index=st.integers(0, 1000),
)
@example(count=12, asks=set(range(12)), tokens=260, index=0)
def test_any_story_is_woven_whole(composer, count, asks, tokens, index):
    s, on_the_way = woven(composer, count, asks, tokens, index)
    assert len(s.context_questions) == len(on_the_way)
    for ask, planted in zip(on_the_way, s.context_questions, strict=True):
        assert s.facts[ask.after_fact][1] <= planted.answer_start < s.facts[ask.after_fact + 1][0]


def test_a_question_on_the_way_without_room_is_left_out(composer):
    s, on_the_way = woven(composer, 12, set(range(12)), 200, 0)
    assert len(on_the_way) == 11 and len(s.context_questions) == 10


def test_half_of_the_stories_of_official_length_are_from_the_files():
    class Counted:
        def __init__(self, fails=False):
            self.fails, self.count = fails, 0

        def story(self, task, split, seed, index, options):
            self.count += 1
            if self.fails:
                raise NoStory("none is short enough")
            return Story(task, ("Mary went home.",), "Where is Mary?", "home", (0,))

    simulated, files = Counted(), Counted()
    both = stories.Mixed(simulated, files)
    for index in range(200):
        both.story("qa1", "train", 0, index, StoryOptions())
    assert files.count + simulated.count == 200 and 70 < files.count < 130
    both.story("qa1", "train", 0, 0, StoryOptions(facts=(2, 5)))
    assert files.count + simulated.count == 201 and files.count < 130
    only = files.count
    for index in range(20):  # nobody simulates QA15
        both.story("qa15", "train", 0, index, StoryOptions())
    assert files.count == only + 20
    before = simulated.count
    none = stories.Mixed(simulated, Counted(fails=True))
    for index in range(50):
        none.story("qa1", "train", 0, index, StoryOptions())
    assert simulated.count == before + 50


def test_both_kinds_of_facts_want_the_files_that_were_named(tmp_path):
    composer = Composer(Data(TASKS, facts="both", babi_dir=str(tmp_path / "mistyped")), TOKENS)
    with pytest.raises(BabiError, match="mistyped"):
        for index in range(20):  # half of them would be from the files
            composer.sample("qa1", "1k", 0, index)


def test_an_answer_that_has_no_room_is_not_asked():
    composer = Composer(Data(TASKS, new_names=1.0), TOKENS)
    composer.answer_room = 3  # less than many names take
    options = StoryOptions(new_names=("people", "places", "objects"))
    for index in range(60):
        sample = composer.sample("qa1", "0k", 0, index, options)
        assert len(sample.answer_ids) < composer.answer_room
    # A list of things is longer than any answer of the task trained on, and is asked.
    one = Composer(Data(tasks=("qa1",)), TOKENS)
    longest = max(len(one.sample("qa8", "0k", 0, index).answer_ids) for index in range(60))
    assert longest >= one.answer_room
