"""QA9 and QA10: statements about persons, each of which replaces the last about its person.

Nothing is carried and nobody walks: the official files draw every statement afresh.
"""

import re

from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator.moving import MOVES
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.words import Names

MAYBE = 0.59  # of the questions after 'either ... or' ask for one of the two (official: 1,473
# answers 'maybe' in 10,000, a quarter of the statements being indefinite)

FORMS = {
    "is": re.compile(rf"(\w+) (?:is in|{'|'.join(MOVES)}) the (\w+)\."),
    "other": re.compile(r"(\w+) is (?:no longer|not|either) in the (\w+)(?: or the (\w+))?\."),
}


class World:
    def __init__(self, task: str, names: Names, rng: AddressedRng):
        self.task, self.names, self.rng = task, names, rng
        self.last: dict[str, tuple[str, tuple[str, ...], int]] = {}  # kind, places, fact number
        self.fact_count = 0

    def leave_objects_unplaced(self) -> None:
        """There are no objects."""

    def next_fact(self) -> str:
        rng = self.rng
        person, place = rng.pick(self.names.people), rng.pick(self.names.places)
        kind = rng.pick(("is", "other", "goes", "goes"))
        places = (place,)
        if kind == "is":
            text = f"{person} is in the {place}."
        elif kind == "goes":
            text = f"{person} {rng.pick(MOVES)} the {place}."
        elif self.task == "qa9":
            text = f"{person} is {rng.pick(('no longer', 'not'))} in the {place}."
        else:
            places = tuple(rng.sample(self.names.places, 2))
            text = f"{person} is either in the {places[0]} or the {places[1]}."
        self.last[person] = (kind if kind == "other" else "is", places, self.fact_count)
        self.fact_count += 1
        return text

    def follow(self, fact: str) -> bool:
        for kind, form in FORMS.items():
            if told := form.fullmatch(fact):
                person, *places = (name for name in told.groups() if name)
                known = person in self.names.people and {*places} <= {*self.names.places}
                if known and len(places) == (2 if " either " in fact else 1):
                    self.last[person] = (kind, tuple(places), self.fact_count)
                    self.fact_count += 1
                    return True
        return False

    def questions(self) -> list[Question]:
        return [self._about(person) for person in self.last]

    def _about(self, person: str) -> Question:
        kind, places, number = self.last[person]
        elsewhere = [place for place in self.names.places if place not in places]
        if kind == "is":
            yes = self.rng.uniform() < 0.5
            place, answer = (places[0], "yes") if yes else (self.rng.pick(elsewhere), "no")
        elif self.task == "qa9":
            place, answer = places[0], "no"
        elif self.rng.uniform() < MAYBE:
            place, answer = self.rng.pick(places), "maybe"
        else:
            place, answer = self.rng.pick(elsewhere), "no"
        return Question(f"Is {person} in the {place}?", answer, (number,))

    def choose(self, questions: list[Question]) -> Question:
        return self.rng.pick(questions)

    def intermediate_question(self) -> Question:
        return self.rng.pick(self.questions())
