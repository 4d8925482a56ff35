"""Evaluation data made harder or merely different: one name, one change.

A change is applied to a sample by its address, so that sample number k is always the same.
"""

import re
from typing import NamedTuple

import numpy as np

from rmt_jax.data import words
from rmt_jax.data.corpus.background import Background, Slice
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Story
from rmt_jax.data.tasks import Task
from rmt_jax.data.tokenizer import Tokenizer

WINDOWS = {"facts_start": (0.0, 0.25), "facts_middle": (0.375, 0.625), "facts_end": (0.75, 1.0)}
DESCRIPTIONS = {
    "paraphrase": "The task prompt says the same in words that were never trained on.",
    "missing_description": "The task prompt says nothing.",
    "wrong_description": "The task prompt describes another task.",
}
PERTURBATIONS: dict[str, str] = {
    "new_people": "Persons bear names that were never trained on.",
    "new_places": "Places bear names that were never trained on.",
    "new_objects": "Objects bear names that were never trained on.",
    "new_names": "Persons, places and objects bear names that were never trained on.",
    "absent": "The question names somebody or something that the text does not; the answer is"
    " 'unknown'.",
    "other_description": "The task prompt asks for another meaning of the same question, and the"
    " answer to that is right.",
    "distractors": "As many facts again about persons whom nobody asks for.",
    "facts_start": "Facts stand in the first quarter of the text.",
    "facts_middle": "Facts stand in the middle quarter of the text.",
    "facts_end": "Facts stand in the last quarter of the text.",
    "shuffled": "Background sentences stand in random order.",
    "typos": "One word in ten of the background has two letters swapped.",
    "other_background": "Background text of another kind than in training.",
    **DESCRIPTIONS,
}
# Of a model that reads the description of its task.
NEED_DESCRIPTION = (*DESCRIPTIONS, "other_description")
TYPO_SHARE = 0.1
UNKNOWN = "unknown"  # the answer where the text does not tell
_POINTS_BACK = re.compile(r"(?:Then|After|Afterwards|Following)\b")


def check(name: str) -> str:
    """The name, if there is such a perturbation; DataError otherwise."""
    if name and name not in PERTURBATIONS:
        raise DataError(f"There is no perturbation {name!r}: there are {', '.join(PERTURBATIONS)}.")
    return name


def check_task(name: str, task: Task) -> None:
    """Raises DataError where the perturbation means nothing for a task's stories."""
    if name == "other_description" and not task.several_meanings:
        raise DataError(
            "The perturbation 'other_description' needs questions of several meanings, and those of"
            f" '{task.name}' have one: name such tasks, as --tasks object_now,object_first."
        )


def description(name: str, task: Task, number: int) -> str:
    """The description of its task that goes with sample `number`.

    Raises DataError for a task without paraphrases, or without wrong descriptions.
    """
    if name == "missing_description":
        return ""
    if name not in ("wrong_description", "paraphrase"):
        return task.description
    others = task.wrong_descriptions if name == "wrong_description" else task.paraphrases
    if not others:
        raise DataError(f"The task '{task.name}' has no texts for the perturbation '{name}'.")
    return others[number % len(others)]


def story(name: str, original: Story, rng: AddressedRng) -> Story | None:
    """The story with other names, another question, or distractors among its facts; None where it
    leaves nothing to change, and another one is needed."""
    if name.startswith("new_"):
        kind = name.removeprefix("new_")
        for renamed in words.Names._fields if kind == "names" else (kind,):
            original = rename(original, renamed, rng, held_out=True)
        return original
    if name == "distractors":
        return _add_distractors(original, rng)
    if name == "absent":
        return ask_absent(original, rng, held_out=True)
    if name == "other_description":
        return ask_other_meaning(original, rng)
    return original


def ask_other_meaning(original: Story, rng: AddressedRng) -> Story | None:
    """The same facts and question under the description of another meaning, with the answer that it
    has; None where none of them has another answer than the story's own."""
    others = [other for other in original.other_meanings if other[1] != original.answer]
    if not others:
        return None
    description, answer = rng.pick(others)
    # What the answer rests on differs too, and is not told.
    return original._replace(
        description=description, answer=answer, supporting=(), intermediate_questions=()
    )


def ask_absent(original: Story, rng: AddressedRng, held_out: bool) -> Story:
    """The story asked for a person, an object or a place that none of its facts names: the answer
    is 'unknown'. The name is an official one or one of the word lists, of the part that training
    may draw from or of the part `held_out`. Unchanged where the question names nobody."""
    told = " ".join(original.facts)
    for kind in words.Names._fields:  # persons first: 'Is Mary in the kitchen?'
        named = [w for w in _names_in(original.question, kind) if re.search(rf"\b{w}\b", told)]
        if not named:
            continue
        official = [w for w in words.every_official(kind) if not re.search(rf"\b{w}\b", told)]
        listed = rng.uniform() < 0.5 or not official
        pool = words.words(kind, held_out) if listed else official
        absent = rng.pick([w for w in pool if not re.search(rf"\b{w}\b", told)])
        question = re.sub(rf"\b{rng.pick(named)}\b", absent, original.question)
        return original._replace(
            question=question,
            answer=UNKNOWN,
            supporting=(),
            other_answers=(),
            # What else is asked on the way stays; the question that was changed is not asked there.
            intermediate_questions=tuple(
                one for one in original.intermediate_questions if one.question != original.question
            ),
        )
    return original


def _names_in(question: str, kind: str) -> list[str]:
    """Names of a kind in a question, official ones and others: persons are capital, objects follow
    'the' where nothing else is known."""
    official = [w for w in words.every_official(kind) if re.search(rf"\b{w}\b", question)]
    if official or kind == "places":
        return official
    form = r"(?<!^)\b[A-Z]\w+" if kind == "people" else r"(?<=the )\w+"
    return re.findall(form, question)


def rename(original: Story, kind: str, rng: AddressedRng, held_out: bool) -> Story:
    """The story with every official name of a kind ('people', 'places', 'objects') replaced by
    another, the same one throughout."""
    known = words.every_official(kind)
    if held_out:
        others = rng.sample(words.words(kind, held_out), len(known))
    else:
        others = words.draw(len(known), kind, rng)
    new = dict(zip(known, others, strict=True))
    pattern = re.compile(rf"\b({'|'.join(known)})\b")

    def change(text: str) -> str:
        return pattern.sub(lambda match: new[match[0]], text)

    return original._replace(
        facts=tuple(change(fact) for fact in original.facts),
        question=change(original.question),
        answer=change(original.answer),
        intermediate_questions=tuple(
            one._replace(question=change(one.question), answer=change(one.answer))
            for one in original.intermediate_questions
        ),
    )


def _add_distractors(original: Story, rng: AddressedRng) -> Story:
    from rmt_jax.data.simulator.moving import MOVES

    # Persons who are in no official file walk between the same places.
    people = rng.sample(words.words("people", held_out=True), 4)
    places = words.official(original.task).places

    def walk() -> str:
        return f"{rng.pick(people)} {rng.pick(MOVES)} the {rng.pick(places)}."

    facts, moved = [], []
    for fact in original.facts:
        # 'Then she …' (QA11, QA13) says whom it means only right after the fact before it.
        if not _POINTS_BACK.match(fact):
            facts += [walk() for _ in range(rng.below(3))]
        moved.append(len(facts))
        facts.append(fact)
    supporting = tuple(moved[i] for i in original.supporting)
    questions = tuple(
        one._replace(after_fact=moved[one.after_fact]) for one in original.intermediate_questions
    )
    return original._replace(
        facts=tuple(facts), supporting=supporting, intermediate_questions=questions
    )


class PerturbedBackground(NamedTuple):
    """How background is taken: as it stands, shuffled, or with typos."""

    name: str
    background: Background
    tokenizer: Tokenizer

    def take(self, first: int, tokens: int, rng: AddressedRng) -> Slice:
        taken = self.background.take(first, tokens)
        if self.name not in ("shuffled", "typos") or len(taken.starts) < 2:
            return taken
        ends = np.append(taken.starts[1:], tokens)
        spans = [taken.tokens[a:b] for a, b in zip(taken.starts, ends, strict=True)]
        if self.name == "shuffled":
            spans = [spans[i] for i in rng.numpy.permutation(len(spans))]
        else:
            wrong = [_typos(self.tokenizer.decode(ids), rng) for ids in spans]
            spans = [np.asarray(ids, np.int32) for ids in self.tokenizer.encode_many(wrong)]
            # Typos take more tokens than words, so what is over at the end is cut; the rare text
            # that got shorter is filled from its beginning.
            while sum(map(len, spans)) < tokens:
                spans += spans
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in spans])])
        kept = int(np.searchsorted(starts, tokens, "left"))
        return Slice(np.concatenate(spans)[:tokens], starts[:kept].astype(np.int64))


def _typos(text: str, rng: AddressedRng) -> str:
    """Two neighbouring letters swapped in one word of ten."""
    changed = []
    for word in text.split(" "):
        if len(word) > 3 and rng.uniform() < TYPO_SHARE:
            i = rng.between(1, len(word) - 3)
            word = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        changed.append(word)
    return " ".join(changed)


def other_background(source: str) -> str:
    """Another kind of text than `source`. DataError where none is at hand."""
    if source in ("builtin", "none"):
        raise DataError(
            "The model was trained with the built-in background: name a folder of other texts, "
            "for example with --background FOLDER, instead of the perturbation other_background."
        )
    return "builtin"
