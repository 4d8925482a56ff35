"""One question, several meanings; and questions that the text does not answer."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from rmt_jax.config import Config, Data, Model, Prompt, Stage
from rmt_jax.data import perturb, simulator, tasks, tokenizer, words
from rmt_jax.data.compose import Composer
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import Loader
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import StoryOptions
from rmt_jax.data.tasks import meanings

pytestmark = pytest.mark.portable

TOKENS = tokenizer.load()
NAMES = tuple(name for name in tasks.REGISTRY if tasks.create(name, Data()).suite == "meanings")


def descriptions(name: str) -> set[str]:
    """All that training may say of a meaning."""
    subject, meaning = name.split("_")
    parts = (
        meanings.FRAMES,
        meanings.SUBJECTS[subject],
        meanings.PLACES,
        meanings.TRAINED[meaning],
    )
    return {meanings.describe(subject, meaning, n) for n in range(math.prod(map(len, parts)))}


class Reader:
    """Another reading of the facts, from their words alone."""

    def __init__(self, facts):
        self.where: dict[str, list[tuple[str, int]]] = {}  # places of persons and objects, when
        self.holder, self.touched = {}, {}
        for now, fact in enumerate(facts):
            person, *rest = fact.rstrip(".").split()
            last = rest[-1] if rest[-1] != "there" else rest[-2]
            verb = " ".join(rest)
            if re.match(r"(moved|went|journeyed|travelled)", verb):
                self.go(person, last, now)
                for thing, whose in self.holder.items():
                    if whose == person:
                        self.go(thing, last, now)
                continue
            self.touched[last] = person
            if re.match(r"(picked|got|grabbed|took)", verb):
                self.holder[last] = person
            else:
                self.holder.pop(last, None)
            if person in self.where:
                self.go(last, self.where[person][-1][0], now)
        self.end = len(facts)

    def go(self, who, place, now):
        path = self.where.setdefault(who, [])
        if not path or path[-1][0] != place:
            path.append((place, now))

    def answer(self, who, meaning):
        if meaning == "touched":
            return self.touched[who]
        path = self.where[who]
        if meaning in ("now", "first", "previous"):
            return path[{"now": -1, "first": 0, "previous": -2}[meaning]][0]
        spent = Counter()
        for (place, start), stop in zip(path, [*(t for _, t in path[1:]), self.end], strict=True):
            spent[place] += stop - start
        return spent.most_common(1)[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_another_reader_finds_the_answer(name):
    task, subject, meaning = tasks.create(name, Data()), *name.split("_")
    options = StoryOptions(facts=(3, 14), question_rate=0.5)
    for index in range(60):
        story = task.sample("train", 0, index, options)
        who = re.findall(r"\w+", story.question)[-1]
        form = "Where is the {}?" if subject == "object" else "Where is {}?"
        assert story.question == form.format(who)
        assert Reader(story.facts).answer(who, meaning) == story.answer, story
        assert story.answer in task.labels and story.supporting
        for asked in story.intermediate_questions:
            who = re.findall(r"\w+", asked.question)[-1]
            known = Reader(story.facts[: asked.after_fact + 1])
            assert known.answer(who, meaning) == asked.answer
        assert story == task.sample("train", 0, index, options)


def test_the_same_story_has_another_answer_under_another_description():
    assert len(NAMES) == 9
    differ = Counter()
    for index in range(200):
        rng = AddressedRng(index)
        world = simulator.create_world("qa2", words.OFFICIAL, rng)
        for _ in range(12):
            world.next_fact()
        for thing in words.OFFICIAL.objects:
            found = {m: meanings.answer_of(world, thing, m) for m in meanings.TRAINED}
            said = {m: answer[0] for m, answer in found.items() if answer}
            differ[len(set(said.values()))] += len(said) == 5
    assert sum(n for k, n in differ.items() if k >= 3) > 50  # of five meanings


def test_another_description_has_the_answer_to_that():
    """The perturbation: facts and question stay; another reader finds what the description asks."""
    wanted = {
        (subject, text): meaning
        for subject, meaning in (name.split("_") for name in NAMES)
        for text in descriptions(f"{subject}_{meaning}")
    }
    for name in NAMES:
        subject, own = name.split("_")
        composer = Composer(
            Data(tasks=(name,), background="none"), TOKENS, "validation", change="other_description"
        )
        for index in range(30):
            story = composer.sample(name, "0k", 1, index).story
            meaning = wanted[subject, story.description]
            who = re.findall(r"\w+", story.question)[-1]
            read = Reader(story.facts)
            assert meaning != own and read.answer(who, meaning) == story.answer
            assert read.answer(who, own) != story.answer
    with pytest.raises(DataError, match="those of 'qa1' have one"):
        Composer(Data(), TOKENS, change="other_description").sample("qa1", "0k", 1, 0)


def test_descriptions_are_put_together_and_some_are_held_out():
    task = tasks.create("object_first", Data())
    trained = {task.sample("train", 0, index, StoryOptions()).description for index in range(300)}
    assert len(trained) > 150
    for name in NAMES:
        task, every = tasks.create(name, Data()), descriptions(name)
        assert len(every) >= 190 and len(task.paraphrases) == 15
        assert not every & set(task.paraphrases)
        assert all(len(TOKENS.sentence(text)) <= 24 for text in (*every, *task.paraphrases))
        same = [other for other in NAMES if other.split("_")[0] == name.split("_")[0]]
        for other in set(same) - {name}:
            assert not every & (descriptions(other) | set(tasks.create(other, Data()).paraphrases))


def test_a_batch_has_the_description_of_each_story():
    config = Config(
        model=Model(segment_tokens=64),
        prompt=Prompt(tokens=24),
        data=Data(tasks=NAMES, background="none"),
        stages=(Stage(4, steps=5, batch=32, learning_rate=0),),
    )
    batch = Loader(config, TOKENS).batch_at(0)
    prompts = zip(batch.prompt, batch.prompt_mask, strict=True)
    said = [TOKENS.decode(tokens[mask]).strip() for tokens, mask in prompts]
    for text, task in zip(said, batch.task, strict=True):
        assert text in descriptions(NAMES[task])
    assert len(set(said)) > 20


@pytest.mark.parametrize("name", [f"qa{i}" for i in range(1, 11)])
def test_a_question_that_no_fact_answers(name):
    task, changed = tasks.create(name, Data()), 0
    for index in range(50):
        story = task.sample("train", 1, index, StoryOptions(facts=(3, 9), question_rate=1.0))
        asked = perturb.ask_absent(story, AddressedRng(index), False)
        changed += asked != story
        if asked == story:
            continue
        assert asked.answer == "unknown" and asked.facts == story.facts and not asked.supporting
        (new,) = set(re.findall(r"\w+", asked.question)) - set(re.findall(r"\w+", story.question))
        assert not re.search(rf"\b{new}\b", " ".join(story.facts))
        assert story.question not in {one.question for one in asked.intermediate_questions}
    assert changed >= 45


def test_unknown_is_trained_as_often_as_asked_for_and_fits():
    config = Config(
        model=Model(segment_tokens=64),
        data=Data(tasks=("qa1", "qa6"), background="none", unknown_rate=0.3, new_names=0.5),
        stages=(Stage(2, steps=40, batch=16, learning_rate=0),),
    )
    loader = Loader(config, TOKENS)
    unknown = TOKENS.sentence("unknown")
    assert loader.composer.answer_room > len(unknown)
    answers = np.concatenate([loader.batch_at(step).answer[:, -1, 0] for step in range(20)])
    share = (answers[:, : len(unknown)] == unknown).all(axis=1).mean()
    assert 0.22 < share < 0.38
    composer = Composer(config.data, TOKENS, "validation", change="absent")
    assert composer.sample("qa1", "0k", 0, 3).answer == "unknown"
