"""Worlds that follow facts which they are told: what official stories can be asked, and are."""

import re

import pytest
from test_data_simulator import BABI, MOVING, Oracle, needs_files

from rmt_jax.data import simulator, words
from rmt_jax.data.babi import files
from rmt_jax.data.babi import table as tasks
from rmt_jax.data.babi.official import Official
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator import moving
from rmt_jax.data.story import StoryOptions


@pytest.mark.parametrize("task", tasks.SIMULATED)
def test_a_world_follows_facts_that_it_is_told(task):
    """As a reader of a file would: what it can then be asked is what the first world could."""
    for index in range(60):
        story = simulator.simulate_story(task, (6, index))
        world = simulator.create_world(task, words.official(task), AddressedRng(0, index))
        assert all(world.follow(fact) for fact in story.facts)
        found = [one for _ in range(40) for one in world.questions()]  # some draw what they ask
        found = [one for one in found if one.text == story.question]
        assert found or task in ("qa6", "qa9", "qa10")
        assert {(one.answer, one.supporting) for one in found} <= {(story.answer, story.supporting)}


@pytest.mark.parametrize(
    ("task", "facts"),
    [
        ("qa1", ["Mary moved to the office.", "Wotan went to the office."]),
        ("qa1", ["Mary moved to the lighthouse."]),
        ("qa1", ["Mary flew to the office."]),
        ("qa2", ["Mary dropped the milk."]),
        ("qa2", ["Mary got the milk there.", "John took the milk there."]),
        ("qa5", ["Bill got the milk there.", "Fred gave the milk to Bill."]),
        ("qa4", ["The office is above the kitchen."]),
        ("qa9", ["Mary is either in the office or the kitchen or the garden."]),
        ("qa10", ["Bill is either in the office."]),
    ],
)
def test_a_world_refuses_facts_that_it_cannot_follow(task, facts):
    world = simulator.create_world(task, words.official(task), AddressedRng(0))
    assert [world.follow(fact) for fact in facts] == [True] * (len(facts) - 1) + [False]
    asked = simulator.intermediate_questions(task, tuple(facts), "", (0,), StoryOptions())
    assert asked is None


@needs_files
@pytest.mark.parametrize("task", MOVING)
def test_official_stories_are_asked_after_every_fact(task):
    source = Official(str(BABI))
    held_out = {(one.facts, one.question) for one in source.items(task, "validation")}
    facts = asked = 0
    for index in range(150):
        options = StoryOptions(question_rate=1.0, final_question_only=index % 3 == 0)
        story = source.story(task, "train", 3, index, options)
        bare = source.story(task, "train", 3, index, StoryOptions())
        assert story._replace(intermediate_questions=()) == bare
        oracle = Oracle()
        asks = {one.after_fact: one for one in story.intermediate_questions}
        assert len(asks) == len(story.intermediate_questions)
        for number, fact in enumerate(story.facts):
            oracle.read(fact)
            if number in asks:
                question = asks[number].question
                assert oracle.answer(question) == asks[number].answer, story
                assert (story.facts[: number + 1], question) not in held_out
                assert not options.final_question_only or question == story.question
        if not options.final_question_only:
            facts, asked = facts + len(story.facts), asked + len(asks)
    assert asked > facts / 3


@needs_files
@pytest.mark.parametrize("task", MOVING)
def test_official_stories_are_asked_more_behind_their_last_fact(task):
    source, found = Official(str(BABI)), 0
    held_out = {(one.facts, one.question) for one in source.items(task, "validation")}
    for index in range(80):
        story = source.story(task, "train", 3, index, StoryOptions(last_questions=4))
        asked, oracle = story.intermediate_questions, Oracle()
        for fact in story.facts:
            oracle.read(fact)
        for one in asked:
            assert one.after_fact == len(story.facts) - 1 and one.question != story.question
            assert oracle.answer(one.question) == one.answer
            assert (story.facts, one.question) not in held_out
        found += len(asked)
        assert len(asked) <= 4
    assert found > 40


@needs_files
@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa4"])
def test_the_files_ask_what_the_simulator_may_ask(task):
    """Every question of the files is one that the world has then, with its supporting facts, and
    its decisive fact is among the last five."""
    for item in files.read(files.find(BABI, task, "train"))[:2000]:
        world = simulator.create_world(task, words.official(task), AddressedRng(0))
        assert all(world.follow(fact) for fact in item.facts)
        found = {q.text: q for q in world.questions() if q.decisive >= len(item.facts) - 5}
        asked = found[item.question]
        assert (asked.answer, asked.supporting) == (item.answer, item.supporting)


# Of all official en-10k train questions: share that asks for an object that is still held, and
# median number of facts from the first supporting one to the last.
ASKED = {"qa2": (0.31, 3), "qa3": (0.2, 5)}


@pytest.mark.parametrize("task", ASKED)
def test_objects_are_asked_for_as_in_the_files(task):
    held, spans = 0, []
    stories = [simulator.simulate_story(task, (4, i)) for i in range(600)]
    for story in stories:
        world = simulator.create_world(task, words.official(task), AddressedRng(0))
        assert all(world.follow(fact) for fact in story.facts)
        assert isinstance(world, moving.World)
        held += re.findall(r"the (milk|apple|football)", story.question)[0] in world.holder
        spans.append(max(story.supporting) - min(story.supporting))
    share, median = ASKED[task]
    assert abs(held / len(stories) - share) < 0.08
    assert abs(sorted(spans)[300] - median) <= 1
