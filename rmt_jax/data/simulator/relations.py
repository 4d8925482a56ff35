"""QA4: two facts put three places on a line; a question asks for one neighbour of another."""

import re

from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.words import Names

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}

FORMS = re.compile(rf"The (\w+) is ({'|'.join(OPPOSITE)}) of the (\w+)\.")


class World:
    def __init__(self, names: Names, rng: AddressedRng):
        self.names, self.rng = names, rng
        direction = rng.pick(tuple(OPPOSITE))
        first, middle, last = rng.sample(names.places, 3)
        # `first` lies `direction` of `middle`, `last` on the other side of it.
        links = [(first, direction, middle), (last, OPPOSITE[direction], middle)]
        # The official files name the middle place second in two facts of three.
        turned = [link if rng.uniform() < 2 / 3 else _turned(link) for link in links]
        self.links = rng.shuffled(turned)
        self.fact_count = 0

    def leave_objects_unplaced(self) -> None:
        """There are no objects."""

    def next_fact(self) -> str:
        a, direction, b = self.links[self.fact_count % 2]
        self.fact_count += 1
        return f"The {a} is {direction} of the {b}."

    def follow(self, fact: str) -> bool:
        told = FORMS.fullmatch(fact)
        if told is None or not {told[1], told[3]} <= {*self.names.places}:
            return False
        self.links[self.fact_count :] = [(told[1], told[2], told[3])]
        self.fact_count += 1
        return True

    def _about(self, turned: bool) -> list[Question]:
        found = []
        for number, link in enumerate(self.links[: self.fact_count]):
            a, direction, b = _turned(link) if turned else link
            back = OPPOSITE[direction]
            found.append(Question(f"What is {direction} of the {b}?", a, (number,)))
            found.append(Question(f"What is the {b} {back} of?", a, (number,)))
        return found

    def questions(self) -> list[Question]:
        """The official ones: the answer is the place that its fact names first."""
        return self._about(turned=False)

    def choose(self, questions: list[Question]) -> Question:
        return self.rng.pick(questions)

    def intermediate_question(self) -> Question:
        """All four directions, both ways round."""
        return self.rng.pick(self._about(turned=self.rng.uniform() < 0.5))


def _turned(link: tuple[str, str, str]) -> tuple[str, str, str]:
    a, direction, b = link
    return b, OPPOSITE[direction], a
