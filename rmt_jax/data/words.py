"""Names of persons, places and objects: the official ones, and large lists of common words.

With other names than the official ones a model cannot answer from memory of the labels. The lists
lie in `assets/words/*.txt`: training draws from the first part of each, the perturbations
`new_people`, `new_places` and `new_objects` of evaluation from the rest, so that evaluation names
were never trained on.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from rmt_jax.data.dice import Dice
from rmt_jax.data.tasks import PLACES

ASSETS = Path(__file__).resolve().parent.parent / "assets"
TRAINED = 0.75  # the part of each list that training may draw from


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


def draw(names: Names, dice: Dice, kinds: tuple[str, ...], held_out: bool = False) -> Names:
    """`names` with the given kinds redrawn from the word lists, as many as there were."""
    drawn = {kind: words(kind, held_out) for kind in kinds}
    new = {kind: tuple(dice.sample(w, len(getattr(names, kind)))) for kind, w in drawn.items()}
    return names._replace(**new)
