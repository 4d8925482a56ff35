"""QA4: two facts put three places on a line; a question asks for one neighbour of another."""

from rmt_jax.data.rng import Dice
from rmt_jax.data.simulator.question import Question
from rmt_jax.data.words import Names

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class World:
    def __init__(self, names: Names, dice: Dice):
        self.dice = dice
        direction = dice.pick(tuple(OPPOSITE))
        first, middle, last = dice.sample(names.places, 3)
        # `first` lies `direction` of `middle`, `last` on the other side of it.
        links = [(first, direction, middle), (last, OPPOSITE[direction], middle)]
        # The official files name the middle place second in two facts of three.
        told = [link if dice.uniform() < 2 / 3 else _turned(link) for link in links]
        self.links = dice.shuffled(told)
        self.told = 0

    def gather(self) -> None:
        """Nothing lies about here."""

    def fact(self) -> str:
        a, direction, b = self.links[self.told % 2]
        self.told += 1
        return f"The {a} is {direction} of the {b}."

    def _about(self, turned: bool) -> list[Question]:
        found = []
        for number, link in enumerate(self.links[: self.told]):
            a, direction, b = _turned(link) if turned else link
            back = OPPOSITE[direction]
            found.append(Question(f"What is {direction} of the {b}?", a, (number,)))
            found.append(Question(f"What is the {b} {back} of?", a, (number,)))
        return found

    def questions(self) -> list[Question]:
        """The official ones: the answer is the place that its fact names first."""
        return self._about(turned=False)

    def choose(self, questions: list[Question]) -> Question:
        return self.dice.pick(questions)

    def aside(self) -> Question:
        """All four directions, both ways round."""
        return self.dice.pick(self._about(turned=self.dice.uniform() < 0.5))


def _turned(link: tuple[str, str, str]) -> tuple[str, str, str]:
    a, direction, b = link
    return b, OPPOSITE[direction], a
