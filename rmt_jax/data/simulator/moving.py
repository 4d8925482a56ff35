"""QA1-3 and QA5-8: persons walk, take, drop and give; places and objects are asked for.

An event is drawn as the official files' statistics suggest: a kind, then a person, until that
person can do it. The world knows where everything is; the reader knows the facts so far, and
is asked about these alone.
"""

import itertools
import re
from typing import NamedTuple

from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator.question import NEVER, Question
from rmt_jax.data.words import Names

MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKES = ("picked up", "got", "grabbed", "took")
DROPS = ("dropped", "left", "put down", "discarded")
GIVES = ("passed", "gave", "handed")
NUMBERS = ("none", "one", "two", "three", "four", "five")

# Weights of the kinds of events before it is known whether the drawn person can do it, fitted to
# the official shares of the kinds; `meanings` are tasks of our own (data/tasks/meanings.py).
_KINDS = {
    "qa1": dict(walk=1),
    "qa2": dict(walk=1, take=1, drop=1),
    "qa3": dict(walk=1, take=1, drop=1),
    "meanings": dict(walk=4, take=4, drop=6),
    "qa5": dict(walk=4, take=4, drop=5, give=16),
    "qa6": dict(walk=4, take=4, drop=4),
    "qa7": dict(walk=4, take=4, drop=5, give=16),
    "qa8": dict(walk=4, take=4, drop=5),
}
KINDS = {task: tuple("_" + k for k, n in w.items() for _ in range(n)) for task, w in _KINDS.items()}
# What is asked on the way: the task's own question (own), where a person is, where an object is,
# who has it, what a person carries, where a person was before.
ANYWHERE = ""  # where an object lies that nobody has seen yet (`World.leave_objects_unplaced`)

INTERMEDIATE = {
    "qa1": (("own", 1.0),),
    "qa2": (("own", 0.45), ("person", 0.15), ("holder", 0.2), ("carried", 0.2)),
    "qa3": (
        ("own", 0.4),
        ("object", 0.15),
        ("person", 0.05),
        ("holder", 0.1),
        ("carried", 0.1),
        ("person_before", 0.2),
    ),
    "qa5": (("own", 0.75), ("person", 0.08), ("holder", 0.12), ("object", 0.05)),
    "qa6": (("own", 0.7), ("person", 0.3)),
    "qa7": (("own", 0.6), ("holder", 0.4)),
    "qa8": (("own", 0.6), ("holder", 0.4)),
}


# How the official files say an event: a word each for person, thing, place and receiver.
_FORMS = {
    "walk": rf"(?P<person>\w+) (?:{'|'.join(MOVES)}) the (?P<place>\w+)\.",
    "take": rf"(?P<person>\w+) (?:{'|'.join(TAKES)}) the (?P<thing>\w+)(?: there)?\.",
    "drop": rf"(?P<person>\w+) (?:{'|'.join(DROPS)}) the (?P<thing>\w+)(?: there)?\.",
    "give": rf"(?P<person>\w+) (?:{'|'.join(GIVES)}) the (?P<thing>\w+) to (?P<other>\w+)\.",
}
FORMS = {kind: re.compile(form) for kind, form in _FORMS.items()}


class Visit(NamedTuple):
    place: str
    move: int  # the fact that brought the person (or the object's holder) there
    handled: int  # the fact that put the object into these hands; -1 for a person
    came: bool  # by a walk (not: was found there)


class Gift(NamedTuple):
    giver: str
    object: str
    receiver: str
    fact: int


class World:
    def __init__(self, task: str, names: Names, rng: AddressedRng):
        self.task, self.names, self.rng = task, names, rng
        # The truth: where persons stand and objects lie, and who holds what.
        self.place = {person: rng.pick(names.places) for person in names.people}
        self.lies = {thing: rng.pick(names.places) for thing in names.objects}
        self.holder: dict[str, str] = {}
        # What the facts so far say.
        self.moved: dict[str, int] = {}  # person: fact of the last walk
        self.handled: dict[str, int] = {}  # object: fact that last took, dropped or gave it
        self.received: dict[str, int] = {}  # object: fact that last put it into somebody's hands
        self.dropper: dict[str, tuple[str, int]] = {}  # object: who dropped it, walk before that
        self.path: dict[str, list[Visit]] = {}  # person or object: distinct places, in order
        self.hands: dict[str, list[int]] = {}  # person: every fact about objects in these hands
        self.carried: dict[str, list[str]] = {}  # person: objects known to be carried, in order
        self.gifts: list[Gift] = []
        self.fact_count = 0
        self.unplaced = False

    def leave_objects_unplaced(self) -> None:
        """Nobody touches an object before a fact says where they stand, and whoever first wants an
        object finds it there: in the official world most short stories are over before a question
        about an object has an answer."""
        self.lies = dict.fromkeys(self.names.objects, ANYWHERE)
        self.unplaced = True

    # Events -----------------------------------------------------------------------------------

    def next_fact(self) -> str:
        kinds = KINDS[self.task]
        while True:
            kind = self.rng.pick(kinds)
            people = [self.rng.pick(self.names.people)]
            if self.unplaced:  # whoever can; and walks as often as officially, where many cannot
                kind = "_walk" if self.rng.uniform() < 0.3 else kind
                people = self.rng.shuffled(self.names.people)
            for person in people:
                text = getattr(self, kind)(person)
                if text:
                    self.fact_count += 1
                    return text

    def follow(self, fact: str) -> bool:
        found = ((kind, form.fullmatch(fact)) for kind, form in FORMS.items())
        kind, told = next(((kind, match) for kind, match in found if match), ("", None))
        if told is None or not self._knows(**told.groupdict()):
            return False
        person = told["person"]
        if kind == "walk":
            self._arrive(person, told["place"])
        elif self.holder.get(told["thing"]) != (None if kind == "take" else person):
            return False
        elif kind == "take":
            self._pick_up(told["thing"], person)
        elif kind == "drop":
            self._put_down(told["thing"], person)
        else:
            self._hand_over(told["thing"], person, told["other"])
        self.fact_count += 1
        return True

    def _knows(self, person: str, place: str = "", thing: str = "", other: str = "") -> bool:
        kinds = ((person, "people"), (other, "people"), (place, "places"), (thing, "objects"))
        return all(not name or name in getattr(self.names, kind) for name, kind in kinds)

    def _walk(self, person: str) -> str | None:
        place = self.rng.pick(self.names.places)
        if place == self.place[person]:
            return None
        self._arrive(person, place)
        return f"{person} {self.rng.pick(MOVES)} the {place}."

    def _arrive(self, person: str, place: str) -> None:
        self.place[person] = place
        self.moved[person] = self.fact_count
        self._visit(person, place, self.fact_count, -1, True)
        for thing in self.carried.get(person, ()):
            self._visit(thing, place, self.fact_count, self.handled[thing], True)

    def _take(self, person: str) -> str | None:
        if self.unplaced and person not in self.moved:
            return None
        here = self.place[person]
        free = [
            t
            for t in self.names.objects
            if t not in self.holder and self.lies[t] in (here, ANYWHERE)
        ]
        if not free:
            return None
        thing = self.rng.pick(free)
        self._pick_up(thing, person)
        there = " there" if self.rng.uniform() < (0.2 if self.task == "qa3" else 1.0) else ""
        return f"{person} {self.rng.pick(TAKES)} the {thing}{there}."

    def _pick_up(self, thing: str, person: str) -> None:
        self.holder[thing] = person
        self.received[thing] = self.fact_count
        self._handle(thing, person)
        self.carried.setdefault(person, []).append(thing)

    def _drop(self, person: str) -> str | None:
        held = self.carried.get(person)
        if not held:
            return None
        thing = self.rng.pick(held)
        self._put_down(thing, person)
        there = " there" if self.rng.uniform() < 0.2 else ""
        return f"{person} {self.rng.pick(DROPS)} the {thing}{there}."

    def _put_down(self, thing: str, person: str) -> None:
        self.carried[person].remove(thing)
        del self.holder[thing]
        self.lies[thing] = self.place[person]
        self._handle(thing, person)

    def _give(self, person: str) -> str | None:
        held = self.carried.get(person)
        near = [p for p in self.names.people if p != person and self.place[p] == self.place[person]]
        if not held or not near:
            return None
        thing, other = self.rng.pick(held), self.rng.pick(near)
        self._hand_over(thing, person, other)
        return f"{person} {self.rng.pick(GIVES)} the {thing} to {other}."

    def _hand_over(self, thing: str, person: str, other: str) -> None:
        self.carried[person].remove(thing)
        self.carried.setdefault(other, []).append(thing)
        self.holder[thing] = other
        self.received[thing] = self.fact_count
        self.hands.setdefault(person, []).append(self.fact_count)
        self._handle(thing, other)
        self.gifts.append(Gift(person, thing, other, self.fact_count))

    def _handle(self, thing: str, person: str) -> None:
        """`thing` was taken by, dropped by or given to `person` in the present fact."""
        self.handled[thing] = self.fact_count
        self.hands.setdefault(person, []).append(self.fact_count)
        if person in self.moved:
            self.dropper[thing] = (person, self.moved[person])
            self._visit(thing, self.place[person], self.moved[person], self.fact_count, False)
        else:
            self.dropper.pop(thing, None)

    def _visit(self, who: str, place: str, move: int, handled: int, came: bool) -> None:
        path = self.path.setdefault(who, [])
        if not path or path[-1].place != place:
            path.append(Visit(place, move, handled, came))

    # Questions --------------------------------------------------------------------------------

    def questions(self) -> list[Question]:
        """Every official question that has an answer now."""
        if self.task == "qa1":
            return self._persons()
        if self.task == "qa2":
            return self._objects()
        if self.task == "qa3":
            return self._objects_before()
        if self.task == "qa5":
            return self._gifts()
        if self.task == "qa6":
            return self._yes_no()
        return self._hands()

    def choose(self, questions: list[Question]) -> Question:
        if self.task == "qa5":
            # The five official forms: 'What did P give to P?' as often as two of the others.
            whats = [q for q in questions if q.text.startswith("What")]
            others = [q for q in questions if not q.text.startswith("What")]
            return self.rng.pick(whats if self.rng.uniform() < 1 / 3 else others)
        return self.rng.pick(questions)

    def intermediate_question(self) -> Question | None:
        """A question of the task or of a step on its way, or None if nothing can be asked."""
        kinds, weights = zip(*INTERMEDIATE[self.task], strict=True)
        first = self.rng.weighted(kinds, weights)
        # Where that has no answer yet: another step on the way, but not where a person is; those
        # questions would outnumber all others at the start of every story.
        for kind in (first, *(k for k in kinds if k not in (first, "person"))):
            found = self._asked(kind)
            if found:
                return self.choose(found) if kind == "own" else self.rng.pick(found)
        return None

    def _asked(self, kind: str) -> list[Question]:
        if kind == "own":
            return self.questions()
        if kind == "person":
            return self._persons()
        if kind == "object":
            return self._objects()
        if kind == "holder":
            return self._holders()
        if kind == "carried":
            return self._hands()
        return self._persons_before()

    def _persons(self) -> list[Question]:
        return [Question(f"Where is {p}?", self.place[p], (n,)) for p, n in self.moved.items()]

    def _yes_no(self) -> list[Question]:
        found = []
        for person, number in self.moved.items():
            here = self.place[person]
            yes = self.rng.uniform() < 0.5
            place = here if yes else self.rng.pick([p for p in self.names.places if p != here])
            text = f"Is {person} in the {place}?"
            found.append(Question(text, "yes" if yes else "no", (number,)))
        return found

    def _objects(self) -> list[Question]:
        """The official files ask for what lies somewhere, and for what was carried somewhere."""
        found = []
        for thing, number in self.handled.items():
            holder = self.holder.get(thing)
            if holder in self.moved:
                place, move = self.place[holder], self.moved[holder]
            elif holder is None and thing in self.dropper:
                place, move = self.lies[thing], self.dropper[thing][1]
            else:
                continue  # no fact says where that is
            handled = number if holder is None or move > number else NEVER
            found.append(Question(f"Where is the {thing}?", place, (number, move), handled))
        return found

    def _holders(self) -> list[Question]:
        return [
            Question(f"Who has the {thing}?", self.holder.get(thing, "nobody"), (number,))
            for thing, number in self.handled.items()
        ]

    def _objects_before(self) -> list[Question]:
        """Two places in a row that the present or last holder of an object brought it to: the
        official files ask for no others."""
        found = []
        for thing, number in self.handled.items():
            carried = [v for v in self.path.get(thing, ()) if v.came]
            carried = [v for v in carried if v.handled == self.received[thing]]
            for visit, earlier in _arrivals(carried):
                text = f"Where was the {thing} before the {visit.place}?"
                supporting = (number, visit.move, earlier.move)
                found.append(Question(text, earlier.place, supporting, number))
        return found

    def _persons_before(self) -> list[Question]:
        found = []
        for person in self.names.people:
            for visit, earlier in _arrivals(self.path.get(person, [])):
                text = f"Where was {person} before the {visit.place}?"
                found.append(Question(text, earlier.place, (visit.move, earlier.move)))
        return found

    def _gifts(self) -> list[Question]:
        found: dict[str, Question] = {}
        for giver, thing, receiver, number in self.gifts:  # the latest replaces the earlier
            for text, answer in (
                (f"What did {giver} give to {receiver}?", thing),
                (f"Who gave the {thing}?", giver),
                (f"Who gave the {thing} to {receiver}?", giver),
                (f"Who received the {thing}?", receiver),
                (f"Who did {giver} give the {thing} to?", receiver),
            ):
                found[text] = Question(text, answer, (number,))
        return list(found.values())

    def _hands(self) -> list[Question]:
        found = []
        for person, facts in self.hands.items():
            held = self.carried.get(person, [])
            if self.task == "qa7":
                text, answer = f"How many objects is {person} carrying?", NUMBERS[len(held)]
            else:
                text, answer = f"What is {person} carrying?", ",".join(held) or "nothing"
            found.append(Question(text, answer, tuple(facts)))
        return found


def _arrivals(path: list[Visit]) -> list[tuple[Visit, Visit]]:
    """The latest arrival at each place of a path that was come to from another one, and the visit
    before it."""
    found = {visit.place: (visit, earlier) for earlier, visit in itertools.pairwise(path)}
    return list(found.values())
