"""Our own bAbI: a small world that tells stories in the official form, one for each address.

`simulate_story(task, (seed, index))` is a pure function: a story can be made anywhere, in any
order, again and again. Facts come in pairs and a question is asked as soon as there is one whose
decisive fact (`Question`) lies among the last five, five questions a story, as in the official
files (that is what these say; `tests/test_data_simulator.py` compares). A sample is one of the
five.
"""

from typing import Protocol

from rmt_jax.data.babi import table
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator import moving, relations, statements
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.story import OFFICIAL, IntermediateQuestion, Story, StoryOptions
from rmt_jax.data.words import Names, draw, official

RECENT = 5  # the decisive fact is one of the last five
QUESTIONS = 5  # a story of the official files
LEAST_FACTS = {"qa3": 4, "qa5": 3}  # with fewer there is hardly anything to ask
LAST_QUESTIONS = 3  # intermediate questions more behind the last fact of QA4
LONGEST = 300  # facts after which a story that has no question is dropped
ATTEMPTS = 5000


class World(Protocol):
    """What a simulator of a group of tasks does."""

    rng: AddressedRng

    def leave_objects_unplaced(self) -> None:
        """Objects lie wherever they are first found, so that short stories have answers."""
        ...

    def next_fact(self) -> str: ...

    def follow(self, fact: str) -> bool:
        """What a fact of the official files says has happened next. False where this world can't
        follow: other words or names, or somebody who lets go of what they do not have."""
        ...

    def questions(self) -> list[Question]:
        """Those of the task that have an answer now."""
        ...

    def choose(self, questions: list[Question]) -> Question:
        """One of them, as often as the official files ask it."""
        ...

    def intermediate_question(self) -> Question | None:
        """One to ask on the way, or None if nothing can be asked."""
        ...


def create_world(task: str, names: Names, rng: AddressedRng) -> World:
    """A fresh world. Raises DataError for a task without simulator."""
    if task == "qa4":
        return relations.World(names, rng)
    if task in ("qa9", "qa10"):
        return statements.World(task, names, rng)
    if not table.row(task).simulated:
        raise DataError(
            f"{task} has no simulator: {', '.join(table.SIMULATED)} have. "
            "Take its facts from the official files: config.data.facts=official, or in evaluation "
            "--data official --babi FOLDER."
        )
    return moving.World(task, names, rng)


def draw_names(task: str, options: StoryOptions, rng: AddressedRng) -> Names:
    names = official(task)
    new = {
        kind: draw(len(getattr(names, kind)), kind, rng, options.held_out_names)
        for kind in options.new_names
    }
    return names._replace(**new)


def simulate_story(task: str, address: tuple[int, ...], options: StoryOptions = OFFICIAL) -> Story:
    """The story at an address, e.g. (seed, index), of `options.max_facts` facts or fewer.

    Raises DataError for a task without simulator and where there is no such story.
    """
    number, limit = table.number(task), min(options.max_facts, LONGEST)
    options = options._replace(max_facts=limit)
    for attempt in range(ATTEMPTS):
        here = (*address, number, attempt)
        story = _attempt(task, here, options, None)
        if story is None:
            continue
        if not options.question_rate and not options.last_questions:
            return story
        # The same story again with intermediate questions, which do not change it.
        asker = _Asker(AddressedRng(*here, 1), options, story.question)
        return _attempt(task, here, options, asker) or story
    raise DataError(
        f"{task} finds no question in stories of {options.facts or 'any number of'} facts, "
        f"{limit} at most: allow more facts."
    )


def intermediate_questions(
    task: str,
    facts: tuple[str, ...],
    question: str,
    address: tuple[int, ...],
    options: StoryOptions,
) -> tuple[IntermediateQuestion, ...] | None:
    """What a story of the official files can be asked on the way to its `question`, with the
    answers that its facts give. None where they are told in words that the simulator has not."""
    if not table.row(task).simulated:
        return None
    world = create_world(task, official(task), AddressedRng(*address))
    asker = _Asker(AddressedRng(*address, 1), options, question)
    for number, fact in enumerate(facts):
        if not world.follow(fact):
            return None
        asker.ask(world, number)
    return asker.before(task, question, world, len(facts))


class _Asker:
    """Asks intermediate questions, with random draws of its own."""

    def __init__(self, rng: AddressedRng, options: StoryOptions, final: str):
        self.rng, self.rate, self.final = rng, options.question_rate, final
        self.final_only, self.last = options.final_question_only, options.last_questions
        self.asked: list[IntermediateQuestion] = []

    def ask(self, world: World, after_fact: int) -> None:
        if self.rng.uniform() >= self.rate:
            return
        own, world.rng = world.rng, self.rng
        if self.final_only:
            question = next((q for q in world.questions() if q.text == self.final), None)
        else:
            question = world.intermediate_question()
        world.rng = own
        if question is not None:
            self.asked.append(IntermediateQuestion(after_fact, question.text, question.answer))

    def ask_at_the_end(self, world: World, after_fact: int) -> None:
        """A story that can tell no further fact is asked several questions at its end, else it
        would teach little (QA4: two facts)."""
        for _ in range(0 if self.final_only else LAST_QUESTIONS):
            self.ask(world, after_fact)

    def before(
        self, task: str, question: str, world: World, facts: int
    ) -> tuple[IntermediateQuestion, ...]:
        """Those that leave the final question of a story of so many facts to be answered."""
        if task == "qa4":
            self.ask_at_the_end(world, facts - 1)
        # What could be asked right before the final question is left to the final question.
        last = facts - (task != "qa4")
        asked = [
            one
            for one in self.asked
            if one.after_fact < last and (self.final_only or one.question != question)
        ]
        others = [one for one in world.questions() if one.text != question] if self.last else []
        for one in self.rng.shuffled(others)[: self.last]:
            asked.append(IntermediateQuestion(facts - 1, one.text, one.answer))
        return tuple(asked)


def _attempt(
    task: str, address: tuple[int, ...], options: StoryOptions, asker: _Asker | None
) -> Story | None:
    """None where no question can be asked in the facts allowed."""
    rng = AddressedRng(*address)
    names = draw_names(task, options, rng)
    make = _official if options.facts is None else _of_length
    return make(task, names, rng, options, asker)


def _official(
    task: str, names: Names, rng: AddressedRng, options: StoryOptions, asker: _Asker | None
) -> Story | None:
    """As many facts as the official files have."""
    world = create_world(task, names, rng)
    wanted = 1 if task == "qa4" else rng.between(1, QUESTIONS)
    facts: list[str] = []
    while len(facts) + 2 <= options.max_facts:
        for _ in range(2):
            facts.append(world.next_fact())
            if asker:
                asker.ask(world, len(facts) - 1)
        question = _question(world, len(facts) - RECENT, official=True)
        if question is not None:
            wanted -= 1
            if not wanted:
                return _finish(task, facts, question, world, asker)
    return None


def _of_length(
    task: str, names: Names, rng: AddressedRng, options: StoryOptions, asker: _Asker | None
) -> Story | None:
    """As many facts as the options say."""
    assert options.facts is not None
    low, high = (2, 2) if task == "qa4" else options.facts
    high = max(2, min(high, options.max_facts))
    count = rng.between(min(max(low, LEAST_FACTS.get(task, 2)), high), high)
    if count < options.two_persons_below and task != "qa4":
        people, objects = rng.sample(names.people, 2), rng.sample(names.objects, 2)
        names = Names(tuple(people), names.places, tuple(objects))
    world = create_world(task, names, rng)
    world.leave_objects_unplaced()
    facts: list[str] = []
    while len(facts) < high:  # past `count` only while there is nothing to ask
        facts.append(world.next_fact())
        if asker:
            asker.ask(world, len(facts) - 1)
        if len(facts) >= count:
            recent = RECENT if count <= 20 else count
            question = _question(world, len(facts) - recent)
            if question is not None:
                return _finish(task, facts, question, world, asker)
    return None


def _question(world: World, first: int, official: bool = False) -> Question | None:
    """One whose latest supporting fact is number `first` or later; `official`: whose decisive one
    is. None where there is no such question."""
    found = [
        q for q in world.questions() if (q.decisive if official else max(q.supporting)) >= first
    ]
    return world.choose(found) if found else None


def _finish(
    task: str, facts: list[str], question: Question, world: World, asker: _Asker | None
) -> Story:
    asked = asker.before(task, question.text, world, len(facts)) if asker else ()
    return Story(task, tuple(facts), question.text, question.answer, question.supporting, asked)
