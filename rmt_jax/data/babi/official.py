"""Facts from the official bAbI files, split so that training, validation and test share no story.

The train files (and `_valid` files where a layout has them) give train and validation; a story
belongs to one, 8:2, by a hash of all its facts, and a question that a train story asks of the same
facts is no validation question. The test files are test, and nothing else is.
"""

from functools import lru_cache
from pathlib import Path

from rmt_jax.data import perturb, simulator
from rmt_jax.data.babi import files, table
from rmt_jax.data.babi.table import BabiError
from rmt_jax.data.corpus import documents
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import IntermediateQuestion, NoStory, Story, StoryOptions


class Official:
    """A source of stories. An index is a place in a shuffle of the questions that is drawn anew for
    every pass over them."""

    def __init__(self, folder: str):
        if not folder:
            raise BabiError(
                "config.data.facts=official (or both) needs config.data.babi_dir, the folder of "
                f"the official files. {files.manual_route()}"
            )
        self.folder = folder

    def items(self, task: str, split: str) -> tuple[files.Item, ...]:
        """The questions of a split, in file order."""
        return _items(self.folder, task, split)

    def story(self, task: str, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        """Raises NoStory where the split has none that is short enough, BabiError for missing
        files."""
        low, high = options.facts or (0, options.max_facts)
        high = min(high, options.max_facts)
        items = self.items(task, split)
        if not items:
            raise NoStory(
                f"{task}: {self.folder} has no story for {split}. Stories of the train file are "
                "split by a hash, 8:2 into train and validation, so that a file of few stories may "
                f"leave a side empty. {files.manual_route()}"
            )
        allowed = _allowed(self.folder, task, split, low, high)
        if not allowed:
            raise NoStory(
                f"{task}: none of {len(items):,} official questions ({split}) has {low} to {high}"
                " facts."
            )
        lap, place = divmod(index, len(allowed))
        number = allowed[_shuffle(len(allowed), seed, lap, table.number(task))[place]]
        item = items[number]
        asked = self._on_the_way(task, split, number, (seed, index, 6), options)
        story = Story(task, item.facts, item.question, item.answer, item.supporting, asked)
        for kind in options.new_names:
            rng = AddressedRng(seed, index, 8)
            story = perturb.rename(story, kind, rng, options.held_out_names)
        return story

    def _on_the_way(
        self, task: str, split: str, number: int, address: tuple[int, ...], options: StoryOptions
    ) -> tuple[IntermediateQuestion, ...]:
        """Intermediate questions of question `number` of a split. Training is asked none that
        validation asks of a story that begins alike."""
        if not options.question_rate and not options.last_questions:
            return ()
        items = self.items(task, split)
        facts, question = items[number].facts, items[number].question
        asked = simulator.intermediate_questions(task, facts, question, address, options)
        if asked is None:
            return _earlier_questions(items, number, address, options)
        if split != "train":
            return asked
        held_out = _held_out(self.folder, task)
        return tuple(
            one for one in asked if (facts[: one.after_fact + 1], one.question) not in held_out
        )


class FileOrder:
    """A source of stories: the questions of one official file in file order, those with too many
    facts left out, as in BABILong's published sets."""

    def __init__(self, folder: str, part: str):
        self.folder, self.part = folder, part

    def story(self, task: str, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        """Question number `index`. Raises BabiError past the last one."""
        most = options.max_facts
        items = _short_enough(files.find(self.folder, task, self.part), most)
        if index >= len(items):
            raise BabiError(
                f"{task} has {len(items):,} {self.part} questions of {most:,} facts or fewer, so "
                f"there is no number {index:,}: ask for fewer --samples."
            )
        item = items[index]
        return Story(task, item.facts, item.question, item.answer, item.supporting)


@lru_cache(maxsize=64)
def _items(folder: str, task: str, split: str) -> tuple[files.Item, ...]:
    if split == "test":
        return files.cached(files.find(folder, task, "test"))
    found = list(files.cached(files.find(folder, task, "train")))
    try:
        own = files.find(folder, task, "validation")
    except BabiError:
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


@lru_cache(maxsize=64)
def _held_out(folder: str, task: str) -> frozenset[tuple[tuple[str, ...], str]]:
    return frozenset((item.facts, item.question) for item in _items(folder, task, "validation"))


@lru_cache(maxsize=256)
def _allowed(folder: str, task: str, split: str, low: int, high: int) -> list[int]:
    items = _items(folder, task, split)
    return [i for i, item in enumerate(items) if low <= len(item.facts) <= high]


@lru_cache(maxsize=64)
def _shuffle(size: int, seed: int, lap: int, task: int) -> list[int]:
    return AddressedRng(seed, lap, task, 5).numpy.permutation(size).tolist()


def _earlier_questions(
    items, number: int, address: tuple[int, ...], options: StoryOptions
) -> tuple[IntermediateQuestion, ...]:
    """Questions of the same story that the files ask earlier: the only ones whose answers they
    give, and all that there is where no simulator can follow the facts."""
    rng, item = AddressedRng(*address), items[number]
    found = []
    for earlier in items[max(0, number - 20) : number]:
        after = len(earlier.facts) - 1
        if earlier.story == item.story and after < len(item.facts) - 1:
            if options.final_question_only and earlier.question != item.question:
                continue
            if rng.uniform() < options.question_rate:
                found.append(IntermediateQuestion(after, earlier.question, earlier.answer))
    return tuple(found)


def evaluation_order(path: str | Path, budget: int) -> tuple[files.Item, ...]:
    """The questions of an official evaluation set of a context budget: those of a test file in file
    order, those with more than budget // 8 facts left out (budget 0: none is)."""
    return _short_enough(Path(path), budget // 8 if budget else 10**6)


@lru_cache(maxsize=64)
def _short_enough(path: Path, most: int) -> tuple[files.Item, ...]:
    return tuple(item for item in files.cached(path) if len(item.facts) <= most)
