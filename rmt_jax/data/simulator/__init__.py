"""Our own bAbI: a small world that tells stories in the official form, one for each address.

`tell(task, (seed, index))` is a pure function: a story can be made anywhere, in any order, again
and again. Facts come in pairs and a question is asked as soon as one has an answer whose latest
supporting fact lies among the last five, five questions a story, as in the official files (that is
what their statistics say; `tests/test_data_worlds.py` compares). A sample is one of the five.
"""

from typing import NamedTuple

from rmt_jax.data.rng import Dice
from rmt_jax.data.simulator import moving, relations, statements
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.story import Ask, Story
from rmt_jax.data.tasks import babi
from rmt_jax.data.words import Names, draw, official

RECENT = 5  # the latest supporting fact is one of the last five
QUESTIONS = 5  # a story of the official files
PATIENCE = {
    "qa2": 0.75,
    "qa3": 0.45,
}  # part of the chances to ask that the official files of a task take
LEAST = {"qa3": 4, "qa5": 3}  # facts before which there is hardly anything to ask
LAST_ASKS = 3  # questions more behind the last fact of QA4
LONGEST = 300  # facts after which a story that has no question is dropped


class Manner(NamedTuple):
    """How stories are told, beyond the official way."""

    facts: tuple[int, int] | None = None  # least and most facts, uniform; None: as official
    names: tuple[str, ...] = ()  # kinds drawn from the word lists: people, places, objects
    held_out: bool = False  # draw them from the part of the lists that training never sees
    asks: float = 0.0  # questions after a fact, on average, at most one a fact (dense supervision)
    few: int = 6  # half of the stories below this many facts have two persons: chains close
    same: bool = False  # on the way ask the final question and no other: the reader knows it


OFFICIAL = Manner()


def names(task: str, manner: Manner, dice: Dice) -> Names:
    given = official(task)
    new = {
        kind: draw(len(getattr(given, kind)), kind, dice, manner.held_out) for kind in manner.names
    }
    return given._replace(**new)


def world(task: str, given: Names, dice: Dice):
    """A fresh world that can tell facts (`fact() -> str`) and ask (`questions() -> [...]`)."""
    if task == "qa4":
        return relations.World(given, dice)
    if task in ("qa9", "qa10"):
        return statements.World(task, given, dice)
    if task not in babi.SIMULATED:
        babi.task(task)
        raise ValueError(
            f"{task} has no simulator: {', '.join(babi.SIMULATED)} have. "
            "Take its facts from the official files: config.data.facts=official, or in evaluation "
            "--data official --babi FOLDER."
        )
    return moving.World(task, given, dice)


def tell(
    task: str, address: tuple[int, ...], manner: Manner = OFFICIAL, most: int = LONGEST
) -> Story:
    """The story at an address, e.g. (seed, index), of `most` facts or fewer.

    Raises ValueError for a task without simulator and where no such story can be told.
    """
    number, limit = babi.number(task), min(most, LONGEST)
    for attempt in range(5000):
        story = _tell(task, (*address, number, attempt), manner, limit, None)
        if story is None:
            continue
        if not manner.asks:
            return story
        # Told again with questions on the way, which do not change the story.
        notes = _Notes(Dice(*address, number, attempt, 1), manner.asks, manner.same, story.question)
        return _tell(task, (*address, number, attempt), manner, limit, notes) or story
    raise ValueError(
        f"{task} finds no question in stories of {manner.facts or 'any number of'} facts, "
        f"{most} at most: allow more facts."
    )


def _tell(task: str, address, manner: Manner, most: int, notes) -> Story | None:
    """One attempt: None when no question can be asked in the facts allowed."""
    dice = Dice(*address)
    given = names(task, manner, dice)
    tell = _controlled if manner.facts else _official
    return tell(task, given, dice, manner, most, notes)


class _Notes:
    """Questions on the way, with dice of their own."""

    def __init__(self, dice: Dice, rate: float, same: bool, final: str):
        self.dice, self.rate, self.same, self.final = dice, rate, same, final
        self.asks: list[Ask] = []

    def more(self, place, after: int) -> None:
        """A story that can tell no further fact is asked several questions at its end, else it
        would teach little (QA4: two facts)."""
        for _ in range(0 if self.same else LAST_ASKS):
            self.take(place, after)

    def take(self, place, after: int) -> None:
        if self.dice.uniform() < self.rate:
            own, place.dice = place.dice, self.dice
            if self.same:
                question = next((q for q in place.questions() if q.text == self.final), None)
            else:
                question = place.aside()
            place.dice = own
            if question is not None:
                self.asks.append(Ask(after, question.text, question.answer))


def _official(task, given: Names, dice: Dice, manner: Manner, most: int, notes) -> Story | None:
    place = world(task, given, dice)
    wanted = 1 if task == "qa4" else dice.between(1, QUESTIONS)
    facts: list[str] = []
    while len(facts) + 2 <= most:
        for _ in range(2):
            facts.append(place.fact())
            if notes:
                notes.take(place, len(facts) - 1)
        if dice.uniform() >= PATIENCE.get(task, 1.0):
            continue
        question = _recent(place, len(facts), dice)
        if question is not None:
            wanted -= 1
            if not wanted:
                if notes and task == "qa4":
                    notes.more(place, len(facts) - 1)
                return _story(task, facts, question, notes)
    return None


def _controlled(task, given: Names, dice: Dice, manner: Manner, most: int, notes) -> Story | None:
    assert manner.facts is not None
    low, high = (2, 2) if task == "qa4" else manner.facts
    high = max(2, min(high, most))
    count = dice.between(min(max(low, LEAST.get(task, 2)), high), high)
    if count < manner.few and task != "qa4":
        people, objects = dice.sample(given.people, 2), dice.sample(given.objects, 2)
        place = world(task, Names(tuple(people), given.places, tuple(objects)), dice)
    else:
        place = world(task, given, dice)
    place.gather()
    facts: list[str] = []
    while len(facts) < high:  # past `count` only while there is nothing to ask
        facts.append(place.fact())
        if notes:
            notes.take(place, len(facts) - 1)
        if len(facts) >= count:
            question = _recent(place, len(facts), dice, RECENT if count <= 20 else count)
            if question is not None:
                if notes and task == "qa4":
                    notes.more(place, len(facts) - 1)
                return _story(task, facts, question, notes)
    return None


def _recent(place, facts: int, dice: Dice, recent: int = RECENT) -> Question | None:
    """One of the questions that can be asked now, or None."""
    found = [q for q in place.questions() if max(q.supporting) >= facts - recent]
    return place.choose(found) if found else None


def _story(task: str, facts: list[str], question: Question, notes) -> Story:
    # What could be asked right before the final question is left to the final question.
    last = len(facts) - (task != "qa4")
    asks = notes.asks if notes else []
    same = notes is not None and notes.same
    asks = [ask for ask in asks if ask.after < last and (same or ask.question != question.text)]
    return Story(
        task, tuple(facts), question.text, question.answer, question.supporting, tuple(asks)
    )
