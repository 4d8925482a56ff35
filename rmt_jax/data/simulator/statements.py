"""QA9 and QA10: statements about persons, each of which replaces the last about its person.

Nothing is carried and nobody walks: the official files draw every statement afresh.
"""

from rmt_jax.data.rng import Dice
from rmt_jax.data.simulator.moving import MOVES
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.words import Names

MAYBE = 0.59  # of the questions after 'either ... or' ask for one of the two (official: 1,473
# answers 'maybe' in 10,000, a quarter of the statements being indefinite)


class World:
    def __init__(self, task: str, names: Names, dice: Dice):
        self.task, self.names, self.dice = task, names, dice
        self.last: dict[str, tuple[str, tuple[str, ...], int]] = {}  # kind, places, fact number
        self.told = 0

    def gather(self) -> None:
        """Nothing lies about here."""

    def fact(self) -> str:
        dice = self.dice
        person, place = dice.pick(self.names.people), dice.pick(self.names.places)
        kind = dice.pick(("is", "other", "goes", "goes"))
        places = (place,)
        if kind == "is":
            text = f"{person} is in the {place}."
        elif kind == "goes":
            text = f"{person} {dice.pick(MOVES)} the {place}."
        elif self.task == "qa9":
            text = f"{person} is {dice.pick(('no longer', 'not'))} in the {place}."
        else:
            places = tuple(dice.sample(self.names.places, 2))
            text = f"{person} is either in the {places[0]} or the {places[1]}."
        self.last[person] = (kind if kind == "other" else "is", places, self.told)
        self.told += 1
        return text

    def questions(self) -> list[Question]:
        return [self._about(person) for person in self.last]

    def _about(self, person: str) -> Question:
        kind, places, number = self.last[person]
        elsewhere = [place for place in self.names.places if place not in places]
        if kind == "is":
            yes = self.dice.uniform() < 0.5
            place, answer = (places[0], "yes") if yes else (self.dice.pick(elsewhere), "no")
        elif self.task == "qa9":
            place, answer = places[0], "no"
        elif self.dice.uniform() < MAYBE:
            place, answer = self.dice.pick(places), "maybe"
        else:
            place, answer = self.dice.pick(elsewhere), "no"
        return Question(f"Is {person} in the {place}?", answer, (number,))

    def choose(self, questions: list[Question]) -> Question:
        return self.dice.pick(questions)

    def aside(self) -> Question:
        return self.dice.pick(self.questions())
