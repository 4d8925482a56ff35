"""Names of persons, places and objects: the official ones, and large lists of common words.

With other names than the official ones a model cannot answer from memory of the labels. The lists
lie in `assets/words/*.txt`: the perturbations `new_people`, `new_places` and `new_objects` of
evaluation draw from one part of each, training from the rest and from words that are no names at
all: a model learns a hundred names by heart as it does six, thousands it must copy.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rmt_jax.data.dice import Dice
from rmt_jax.data.tasks import PLACES

ASSETS = Path(__file__).resolve().parent.parent / "assets"
TRAINED = 0.75  # the part of each list that training may draw from
INVENTED = 4000  # words


class Names(NamedTuple):
    people: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


OFFICIAL = Names(("Mary", "John", "Daniel", "Sandra"), PLACES, ("milk", "football", "apple"))
_GIVERS = ("Fred", "Jeff", "Bill", "Mary")
_TOWN = ("school", "park", "cinema", "office", "kitchen", "bedroom")


def official(task: str) -> Names:
    """The names of the official files of a task."""
    if task == "qa5":
        return OFFICIAL._replace(people=_GIVERS)
    if task == "qa10":
        return OFFICIAL._replace(people=("Fred", "Mary", "Bill", "Julie"), places=_TOWN)
    return OFFICIAL


def _official_words() -> set[str]:
    every = (official(task) for task in ("qa1", "qa5", "qa10"))
    return {word for names in every for kind in names for word in kind}


@cache
def words(kind: str, held_out: bool = False) -> tuple[str, ...]:
    """The list 'people', 'places' or 'objects' less the official names: the trained part, or the
    part held out for evaluation. Every fourth word is held out."""
    path = ASSETS / "words" / f"{kind}.txt"
    known = _official_words()
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    listed = sorted({line for line in lines if line and not line.startswith("#")} - known)
    every = round(1 / (1 - TRAINED))
    return tuple(word for i, word in enumerate(listed) if (i % every == 0) == held_out)


@cache
def common() -> tuple[str, ...]:
    """Words of the package's own vocabulary, less the official names and those held out."""
    text = (ASSETS / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    entries = sorted(json.loads(text)["model"]["vocab"])
    known = {word.lower() for word in _official_words()}
    for kind in Names._fields:
        known |= {word.lower() for word in words(kind, held_out=True)}
    return tuple(e[1:] for e in entries if re.fullmatch("Ġ[a-z]{3,}", e) and e[1:] not in known)


@cache
def invented() -> tuple[str, ...]:
    """Words that nobody knows: the beginning of one common word and the end of another."""
    dice, known, found = Dice(INVENTED), set(common()), set()
    for kind in Names._fields:
        known |= {word.lower() for word in words(kind, held_out=True)}
    while len(found) < INVENTED:
        first, second = dice.pick(common()), dice.pick(common())
        word = first[: dice.between(2, 4)] + second[-dice.between(2, 4) :]
        if word not in known:
            found.add(word)
    return tuple(sorted(found))


def trained(kind: str) -> tuple[tuple[str, ...], ...]:
    """The lists that training draws the names of a kind from, each as often as the others."""
    others = _capitals() if kind == "people" else (common(), invented())
    return words(kind), *others


@cache
def _capitals() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.capitalize() for word in some) for some in (common(), invented()))


def draw(names: Names, dice: Dice, kinds: tuple[str, ...], held_out: bool = False) -> Names:
    """`names` with the given kinds redrawn from the word lists, as many as there were."""
    new = {}
    for kind in kinds:
        lists = (words(kind, held_out),) if held_out else trained(kind)
        chosen: dict[str, None] = {}  # a set in the order of its drawing
        while len(chosen) < len(getattr(names, kind)):
            chosen[dice.pick(dice.pick(lists))] = None
        new[kind] = tuple(chosen)
    return names._replace(**new)
