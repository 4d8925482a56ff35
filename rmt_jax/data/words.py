"""Names of persons, places and objects: the official ones, and large lists of common words.

With other names than the official ones a model cannot answer from memory of the labels. The lists
lie in `assets/words/*.txt`: the perturbations `new_people`, `new_places` and `new_objects` of
evaluation draw from one part of each, training from the rest, from words that are no names at all
and from words that nobody knows: a model learns a hundred names by heart as it does six, and
thousands as it does a hundred; what it cannot have seen it must copy.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rmt_jax.data.babi.table import PLACES
from rmt_jax.data.rng import AddressedRng

ASSETS = Path(__file__).resolve().parent.parent / "assets"
TRAINED = 0.75  # the part of each list that training may draw from
LETTERS = (3, 11)  # of an invented word


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


@cache
def every_official(kind: str = "") -> tuple[str, ...]:
    """All names of the official files, or those of a kind ('people', 'places', 'objects'),
    sorted."""
    worlds = (official(task) for task in ("qa1", "qa5", "qa10"))  # the others have qa1's
    kinds = (kind,) if kind else Names._fields
    return tuple(sorted({word for names in worlds for k in kinds for word in getattr(names, k)}))


@cache
def words(kind: str, held_out: bool = False) -> tuple[str, ...]:
    """The list 'people', 'places' or 'objects' less the official names: the trained part, or the
    part held out for evaluation. Every fourth word is held out."""
    kept = sorted(set(listed(kind)) - set(every_official()))
    every = round(1 / (1 - TRAINED))
    return tuple(word for i, word in enumerate(kept) if (i % every == 0) == held_out)


@cache
def listed(kind: str) -> tuple[str, ...]:
    """Every word of a list, sorted: 'people', 'places', 'objects', 'adjectives'."""
    text = (ASSETS / "words" / f"{kind}.txt").read_text(encoding="utf-8")
    lines = {line.strip() for line in text.splitlines()}
    return tuple(sorted(line for line in lines if line and not line.startswith("#")))


@cache
def _taken() -> frozenset[str]:
    """Words that are never drawn in training but from their own list: official and held out."""
    held = {word for kind in Names._fields for word in words(kind, held_out=True)}
    return frozenset(word.lower() for word in held.union(every_official()))


@cache
def _pieces(form: str) -> tuple[str, ...]:
    """Entries of the package's own vocabulary of a form (a regular expression; Ġ is a space)."""
    text = (ASSETS / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    entries = sorted(json.loads(text)["model"]["vocab"])
    return tuple(e.removeprefix("Ġ") for e in entries if re.fullmatch(form, e))


@cache
def common(kind: str) -> tuple[str, ...]:
    """Words of the vocabulary, which are no names; capitals for persons."""
    found = tuple(word for word in _pieces("Ġ[a-z]{3,}") if word not in _taken())
    return tuple(word.capitalize() for word in found) if kind == "people" else found


def invented(kind: str, rng: AddressedRng) -> str:
    """A word that nobody knows: one to three pieces of the vocabulary, which make millions of
    words. Drawn from a list of 4,000, they were learned by heart as well."""
    first = _pieces("Ġ[A-Z][a-z]*" if kind == "people" else "Ġ[a-z]+")
    while True:
        word = rng.pick(first) + "".join(rng.pick(_pieces("[a-z]+")) for _ in range(rng.below(3)))
        if LETTERS[0] <= len(word) <= LETTERS[1] and word.lower() not in _taken():
            return word


def draw(count: int, kind: str, rng: AddressedRng, held_out: bool = False) -> tuple[str, ...]:
    """Different names of a kind: of those held out, or as training draws them, half invented, a
    quarter listed and a quarter common words."""
    chosen: dict[str, None] = {}  # a set in the order of its drawing
    while len(chosen) < count:
        source = rng.uniform()
        if held_out:
            word = rng.pick(words(kind, held_out=True))
        elif source < 0.5:
            word = invented(kind, rng)
        else:
            word = rng.pick(words(kind) if source < 0.75 else common(kind))
        chosen[word] = None
    return tuple(chosen)
