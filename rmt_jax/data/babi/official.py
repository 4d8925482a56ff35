"""Facts from the official bAbI files, split so that training, validation and test share no story.

The train files (and `_valid` files where a layout has them) give train and validation; a story
belongs to one, 8:2, by a hash of all its facts, and a question that a train story asks of the same
facts is no validation question. The test files are test, and nothing else is.
"""

from functools import lru_cache
from pathlib import Path

from rmt_jax.data import perturb
from rmt_jax.data.babi import files
from rmt_jax.data.corpus import documents
from rmt_jax.data.rng import Dice
from rmt_jax.data.simulator import Manner
from rmt_jax.data.story import Ask, NoStory, Story
from rmt_jax.data.tasks import babi as tasks


class Official:
    """A source of stories for `Composer`. An index is a place in a shuffle of the questions that is
    drawn anew for every pass over them."""

    def __init__(self, folder: str, split: str):
        if not folder:
            raise files.BabiError(
                "config.data.facts=official (or both) needs config.data.babi_dir, the folder of "
                f"the official files. {files.manual_route()}"
            )
        self.folder, self.split = folder, split

    def items(self, task: str) -> tuple[files.Item, ...]:
        """The questions of this split, in file order."""
        return _items(self.folder, task, self.split)

    def story(self, task: str, seed: int, index: int, most: int, manner: Manner) -> Story:
        """Raises NoStory where none of the split is short enough, BabiError for missing files."""
        low, high = manner.facts or (0, most)
        allowed = _allowed(self.folder, task, self.split, low, min(high, most))
        if not allowed:
            raise NoStory(
                f"{task}: none of {len(self.items(task)):,} official questions ({self.split}) has "
                f"{low} to {min(high, most)} facts."
            )
        lap, place = divmod(index, len(allowed))
        order = _shuffle(len(allowed), seed, lap, tasks.number(task))
        item = self.items(task)[allowed[order[place]]]
        asks = _asks(self.items(task), allowed[order[place]], manner, seed, index)
        story = Story(
            task, item.facts, item.question, item.answer, item.supporting, asks, item.story
        )
        for kind in manner.names:
            story = perturb.renamed(story, kind, Dice(seed, index, 8), manner.held_out)
        return story


@lru_cache(maxsize=64)
def _items(folder: str, task: str, split: str) -> tuple[files.Item, ...]:
    if split == "test":
        return files.cached(files.find(folder, task, "test"))
    found = list(files.cached(files.find(folder, task, "train")))
    try:
        own = files.find(folder, task, "validation")
    except files.BabiError:
        own = None
    if own is not None:
        return files.cached(own) if split == "validation" else tuple(found)
    whole = {item.story: item.facts for item in found}  # the last question has seen every fact
    train = {n for n, facts in whole.items() if documents.split_of_story(facts) == "train"}
    if split == "train":
        return tuple(item for item in found if item.story in train)
    # Two stories may begin alike: a question of their first facts is the same in both.
    known = {(item.facts, item.question) for item in found if item.story in train}
    rest = (item for item in found if item.story not in train)
    return tuple(item for item in rest if (item.facts, item.question) not in known)


@lru_cache(maxsize=256)
def _allowed(folder: str, task: str, split: str, low: int, high: int) -> list[int]:
    items = _items(folder, task, split)
    return [i for i, item in enumerate(items) if low <= len(item.facts) <= high]


@lru_cache(maxsize=64)
def _shuffle(size: int, seed: int, lap: int, task: int) -> list[int]:
    return Dice(seed, lap, task, 5).numpy.permutation(size).tolist()


def _asks(items, number: int, manner: Manner, seed: int, index: int) -> tuple[Ask, ...]:
    """Questions of the same story that the files ask earlier: the only ones whose answers they
    give."""
    if not manner.asks:
        return ()
    dice, item = Dice(seed, index, 6), items[number]
    found = []
    for earlier in items[max(0, number - 20) : number]:
        after = len(earlier.facts) - 1
        if earlier.story == item.story and after < len(item.facts) - 1:
            if manner.same and earlier.question != item.question:
                continue
            if dice.uniform() < manner.asks:
                found.append(Ask(after, earlier.question, earlier.answer))
    return tuple(found)


def evaluation_order(path: str | Path, budget: int) -> list[files.Item]:
    """The rows of an official evaluation set of a context budget: the questions of a test file in
    file order, those with more than budget // 8 facts left out (budget 0: none is)."""
    items = files.cached(Path(path))
    return [item for item in items if not budget or len(item.facts) <= budget // 8]
