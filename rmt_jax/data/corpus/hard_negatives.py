"""Hard negatives: sentences that look like facts and are none, made from those of a background.

Novels say 'He went to the kitchen', and a gate that knows places by their names takes it for a
fact. Fifty books hold a few hundred such sentences, which a million tokens of other books are sure
to hold too. So thousands are made: 'She came into the room' gets a place of the tasks, 'He took the
letter' one of their objects. Sentences with a person of the tasks stay out: those would be facts.
"""

import re
from functools import lru_cache

import numpy as np

from rmt_jax.data import words
from rmt_jax.data.corpus import documents
from rmt_jax.data.corpus.background import MIN_TOKENS, Background
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.tokenizer import Tokenizer

LONGEST = 400  # characters of a sentence
SELDOM = 0.2  # the share kept of sentences that tell of no going and no taking
_PEOPLE = re.compile(rf"\b(?:{'|'.join(words.every_official('people'))})\b")
_PLACES, _OBJECTS = words.OFFICIAL.places, words.OFFICIAL.objects
_GOING = (
    "went|came|come|go|goes|going|gone|moved|walked|ran|run|returned|back|travelled|journeyed|"
    "hurried|passed|led|down|up|out|off|over"
)
_TAKING = (
    "took|take|got|get|picked up|dropped|left|put down|gave|handed|passed|grabbed|discarded|put"
)
_END = r"\b(?=[ ,.;!?])"
# Forms of sentences, with the words to replace as group 1, and the names to replace them by.
_FACTLIKE = (
    (re.compile(rf"\b(?:{_GOING})\b[^,.;]{{0,20}}?\b(?:to|into) the ([a-z]+){_END}"), _PLACES),
    (re.compile(rf"\b(?:{_TAKING})\b(?: up| down)? ((?:the|his|her|a) [a-z]+){_END}"), _OBJECTS),
)
_OTHERS = (
    (re.compile(r"^[\"“']?The ([a-z]+)(?= )"), _PLACES),
    (re.compile(rf"\b(?:to|into|in|from|at|of|near) the ([a-z]+){_END}"), _PLACES),
)


def make_hard_negative(sentence: str, rng: AddressedRng) -> str | None:
    """The sentence with a name of the tasks in it; None where it has no place for one, names a
    person of the tasks, or is left out."""
    if len(sentence) > LONGEST or _PEOPLE.search(sentence):
        return None
    found = [(m, names) for form, names in _FACTLIKE if (m := form.search(sentence))]
    if found:
        match, names = found[0]
    else:
        found = [(m, names) for form, names in _OTHERS if (m := form.search(sentence))]
        if not found or rng.uniform() >= SELDOM:
            return None
        match, names = rng.pick(found)
    name = rng.pick(names)
    if names is _OBJECTS:
        name = f"the {name}"
    return sentence[: match.start(1)] + name + sentence[match.end(1) :]


@lru_cache(maxsize=4)
def background(source: str, tokenizer: Tokenizer, split: str) -> Background:
    """Made hard negatives of one split of a background, in random order. Raises
    DataError where there are none."""
    rng, found = AddressedRng(documents.SPLITS.index(split), 0, 13), []
    for _, key, content in documents.documents(source):
        if documents.split_of(key) == split:
            text = content if source == "builtin" else documents.read(content)
            made = (make_hard_negative(one, rng) for one in documents.sentences(text))
            found += [f" {one}" for one in made if one]
    ids = [np.array(one) for one in tokenizer.encode_many(found) if len(one) >= MIN_TOKENS]
    if not ids:
        raise DataError(
            f"The background {source!r} ({split} split) has no sentence such as 'She came into the "
            "room', from which one that looks like a fact could be made: give more text."
        )
    order = rng.numpy.permutation(len(ids))
    starts = np.cumsum([0] + [len(ids[i]) for i in order])
    return Background(np.concatenate([ids[i] for i in order]), starts, source, split)
