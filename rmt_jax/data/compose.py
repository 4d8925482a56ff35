"""A needle in its haystack: one sample as a pure function of (task, length, seed, index).

BABILong's rules (Kuratov et al. 2024): the context has an exact budget of tokens; a story with more
than budget // 8 facts is left out; facts stand in order at gaps between background sentences drawn
uniformly with replacement; the background is consecutive sentences from a random place, the last
one cut to fit.
"""

import contextlib
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from rmt_jax import config
from rmt_jax.data import perturb, segmentation, simulator, words
from rmt_jax.data.corpus import background, documents, hard_negatives
from rmt_jax.data.lengths import Length
from rmt_jax.data.rng import Dice
from rmt_jax.data.simulator import Manner
from rmt_jax.data.story import NoStory, Story
from rmt_jax.data.tasks import babi
from rmt_jax.data.tokenizer import Tokenizer

TOKENS_PER_FACT = 8  # a story may have budget // 8 facts
ATTEMPTS = 5000  # stories tried for one sample before giving up


class Planted(NamedTuple):
    """A question with its answer inside the context (dense supervision)."""

    at: int  # place of its ANSWER token in the context
    answer: tuple[int, ...]  # END included


class Sample(NamedTuple):
    task: str
    context: np.ndarray  # i32[n]
    question: str
    answer: str
    question_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]  # END not included
    facts: tuple[tuple[int, int], ...]  # place of each fact in the context: first token, end
    supporting: tuple[int, ...]  # numbers of the facts that the answer rests on
    questions: tuple[Planted, ...]
    story: Story

    @property
    def depths(self) -> tuple[float, ...]:
        """Where the supporting facts stand: 0 the start of the context, 1 its end."""
        return tuple(self.facts[i][0] / max(1, len(self.context)) for i in self.supporting)


class Facts(Protocol):
    """A source of stories: simulated or official."""

    def story(self, task: str, seed: int, index: int, most: int, manner: Manner) -> Story:
        """The story of an index, of `most` facts or fewer."""
        ...


class Simulated:
    """Endless stories of our own worlds. A story belongs to the split that its text hashes to, so
    splits share none, whatever the seeds."""

    def __init__(self, split: str):
        self.split = split

    def story(self, task: str, seed: int, index: int, most: int, manner: Manner) -> Story:
        if most < 2:
            raise ValueError(f"There is room for {most} facts, but a story has 2 or more.")
        for attempt in range(ATTEMPTS):
            story = simulator.tell(task, (seed, index, attempt), manner, most)
            if story is not None and documents.split_of_story(story.facts) == self.split:
                return story
        raise ValueError(
            f"{task}: no story of {most} facts or fewer in {ATTEMPTS:,} attempts. A longer "
            "length, or fewer facts (config.stages.N.facts), leaves room for one."
        )


class Mixed:
    """Half of the stories of official length from the files, where one of the task is short enough,
    and all of a task without simulator; the others simulated, as where a number of facts is asked
    for."""

    def __init__(self, simulated: Facts, official: Facts):
        self.simulated, self.official = simulated, official

    def story(self, task: str, seed: int, index: int, most: int, manner: Manner) -> Story:
        known = babi.task(task).simulated
        if not known or (manner.facts is None and Dice(seed, index, 9).uniform() < 0.5):
            with contextlib.suppress(NoStory):
                return self.official.story(task, seed, index, most, manner)
        return self.simulated.story(task, seed, index, most, manner)


def answer_room(names: tuple[str, ...], tokenizer: Tokenizer, renamed: bool = False) -> int:
    """T: tokens of the longest answer of these tasks, END included. `renamed`: persons, places and
    objects may bear any name of the word lists. (Of invented names longer ones are drawn again.)"""
    longest = 1
    for name in names:
        labels = [tokenizer.sentence(label) for label in babi.task(name).labels]
        most = max(len(ids) for ids in labels)
        if name == "qa8":
            most = 3 * most + 2  # a list of three and its commas
        longest = max(longest, most)
    if renamed:
        for kind in ("people", "places", "objects"):
            listed = (*words.words(kind), *words.words(kind, held_out=True))
            most = max(len(tokenizer.sentence(word)) for word in listed)
            longest = max(longest, most * 3 + 2 if "qa8" in names and kind == "objects" else most)
    return longest + 1


class Composer:
    """Samples of one split. `.sample(task, length, seed, index)` is a pure function.

    `window`: the part of the background in which facts may stand. `change`: a perturbation of
    `data.perturb` (those of the description concern the prompt, not the sample).
    """

    def __init__(
        self,
        data: config.Data,
        tokenizer: Tokenizer,
        split: str = "train",
        *,
        segment_tokens: int = 512,
        facts: Facts | None = None,
        window: tuple[float, float] = (0.0, 1.0),
        change: str = "",
    ):
        self.tokenizer, self.split, self.segment_tokens = tokenizer, split, segment_tokens
        self.align = data.align
        self.facts = facts or _facts(data, split)
        self.change = perturb.check(change)
        self.window = perturb.WINDOWS.get(change, window)
        renamed = data.new_names > 0 or change.startswith("new_")
        self.room = answer_room(data.tasks, tokenizer, renamed)
        source = data.background
        if change == "other_background":
            source = perturb.other_background(source)
        self.background = None
        if source != "none":
            self.background = background.load(source, tokenizer, split)

    def sample(
        self,
        task: str,
        length: Length | str,
        seed: int,
        index: int,
        manner: Manner = simulator.OFFICIAL,
        hidden: bool = True,
        plant: float = 1.0,
        decoys: str = "",
    ) -> Sample:
        """The sample at (task, length, seed, index); `hidden=False` leaves the background out.
        `plant`: the chance of each of the story's questions on the way to stand in the text.
        `decoys`: what makes the background: 'names', only sentences in which a name of the tasks
        stands; 'lookalikes', only such as were given one (`data.lookalikes`).

        Raises ValueError for an unknown task or length and where facts or window leave no room.
        """
        length = Length.parse(length, self.segment_tokens) if isinstance(length, str) else length
        story = (seed, index, manner, hidden, plant, decoys)
        if not length.whole:
            return self._sample(task, length, *story)
        # Segments that end with a sentence hold less: a text that takes more of them is made again,
        # an eighth of a segment a time shorter.
        size = self.segment_tokens
        for tokens in range(length.tokens, 0, -max(1, size // 8)):
            made = self._sample(task, length._replace(tokens=tokens), *story)
            question = len(made.question_ids)
            cut = segmentation.bounds(
                made.context, question, self.room, size, self.align, self.tokenizer
            )
            if (len(cut) - 1) * size <= length.tokens:
                return made
        raise ValueError(f"{task}: no text fits in {length.name} of {size} tokens a segment.")

    def _sample(
        self,
        task: str,
        length: Length,
        seed: int,
        index: int,
        manner: Manner,
        hidden: bool,
        plant: float,
        decoys: str,
    ) -> Sample:
        # A whole length holds question and answer too: about 20 tokens that facts cannot take.
        most = 10**6 if not length.tokens else max(0, length.tokens) // TOKENS_PER_FACT
        for attempt in range(100):
            address = index if not attempt else index + (attempt << 40)
            # Made-up names are long: as many facts as usual may never fit.
            fewer = max(0, most - attempt // 20)
            story = self.facts.story(task, seed, address, fewer, manner)
            # An invented name may be longer than T; answers of tasks never trained on may be too,
            # and are asked all the same.
            if manner.names and len(self.tokenizer.sentence(story.answer)) >= self.room:
                continue
            dice = Dice(seed, address, babi.number(task), length.tokens, 1)
            if self.change:
                story = perturb.story(self.change, story, Dice(seed, address, 7))
            made = self._compose(story, length, dice, hidden, plant, decoys)
            if made is not None:
                return made
        raise ValueError(
            f"{task}: no story fits a length of {length.name} ({length.tokens} tokens)."
        )

    def _compose(
        self,
        story: Story,
        length: Length,
        dice: Dice,
        hidden: bool,
        plant: float,
        decoys: str,
    ) -> Sample | None:
        encode = self.tokenizer.sentence
        question = encode(story.question)
        facts = [encode(fact) for fact in story.facts]
        size = sum(len(ids) for ids in facts)
        budget = length.tokens
        if length.whole:
            budget -= len(question) + 1 + self.room
        if length.tokens and size > budget:
            return None
        room = (budget - size) if length.tokens else 10**6
        asks = self._asks(story, room, dice, plant)
        size += sum(len(ids) for _, ids, _ in asks)
        hide = hidden and self.background is not None and length.tokens > 0
        return self._weave(story, facts, asks, budget - size if hide else 0, dice, decoys)

    def _asks(
        self, story: Story, room: int, dice: Dice, plant: float
    ) -> list[tuple[int, tuple, int]]:
        """Questions on the way that fit in `room`: (after fact, ids, length of the answer)."""
        encode, kept = self.tokenizer.sentence, []
        order = dice.shuffled(story.asks) if len(story.asks) > 1 else story.asks
        for ask in order:
            if plant < 1 and dice.uniform() >= plant:
                continue
            answer = (*encode(ask.answer), self.tokenizer.end)
            ids = (*encode(ask.question), self.tokenizer.answer, *answer)
            if len(ids) <= room:
                room -= len(ids)
                kept.append((ask.after, ids, len(answer)))
        return sorted(kept, key=lambda ask: ask[0])

    def _weave(
        self, story: Story, facts: list, asks: list, fill: int, dice: Dice, decoys: str = ""
    ) -> Sample:
        """Facts and asks into `fill` tokens of background."""
        hay, starts = np.zeros(0, np.int32), np.zeros(1, np.int64)
        gaps = np.zeros(len(facts), np.int64)
        if fill > 0:
            assert self.background is not None
            stack = perturb.Hay(self.change, self.background, self.tokenizer)
            if decoys:
                some = self._decoys(decoys)
                taken = some.take(dice.below(some.sentences), fill)
            else:
                taken = stack.take(dice.below(self.background.sentences), fill, dice)
            hay, starts = taken.tokens, np.append(taken.starts, fill)
            gaps = self._gaps(starts, fill, len(facts), dice)
        # Each insert stands at a gap; among those of one gap the order of the story holds.
        inserts = [
            (int(gap), i, 0, ids, 0) for i, (gap, ids) in enumerate(zip(gaps, facts, strict=True))
        ]
        for after, ids, answer in asks:
            gap = int(gaps[after])
            if fill > 0 and dice.uniform() < 0.5:  # some way after its fact: it still holds there
                until = int(gaps[after + 1]) if after + 1 < len(gaps) else len(starts) - 1
                gap = dice.between(gap, until)
            inserts.append((gap, after, 1, ids, answer))
        inserts.sort(key=lambda one: one[:3])
        out = np.empty(fill + sum(len(one[3]) for one in inserts), np.int32)
        spans, planted, at, done = [], [], 0, 0
        for gap, _, kind, ids, answer in inserts:
            upto = int(starts[gap])
            if upto > done:
                out[at : at + upto - done] = hay[done:upto]
                at, done = at + upto - done, upto
            out[at : at + len(ids)] = ids
            if kind == 0:
                spans.append((at, at + len(ids)))
            else:
                planted.append(Planted(at + len(ids) - answer - 1, ids[-answer:]))
            at += len(ids)
        out[at:] = hay[done:]
        encode = self.tokenizer.sentence
        return Sample(
            story.task, out, story.question, story.answer, encode(story.question),
            encode(story.answer), tuple(spans), story.supporting, tuple(planted), story,
        )  # fmt: skip

    def _decoys(self, kind: str) -> background.Background:
        assert self.background is not None
        if kind == "lookalikes":
            return hard_negatives.background(self.background.name, self.tokenizer, self.split)
        return self.background.holding(_names(self.tokenizer))

    def _gaps(self, starts: np.ndarray, fill: int, count: int, dice: Dice) -> np.ndarray:
        """Numbers of the gaps (0: before the first sentence) where the facts go, sorted."""
        low, high = 0, len(starts)
        if self.window != (0.0, 1.0):
            low = int(np.searchsorted(starts, self.window[0] * fill, "left"))
            high = int(np.searchsorted(starts, self.window[1] * fill, "right"))
            if high <= low:  # few sentences: the gap nearest to the window's middle
                low = int(np.abs(starts - sum(self.window) / 2 * fill).argmin())
                high = low + 1
        return np.sort(dice.numpy.integers(low, high, count))


@lru_cache(maxsize=8)
def _names(tokenizer: Tokenizer) -> tuple[int, ...]:
    """First tokens of the official names of persons, places and objects."""
    every = (
        word for task in ("qa1", "qa5", "qa10") for kind in words.official(task) for word in kind
    )
    return tuple(sorted({tokenizer.sentence(word)[0] for word in every}))


def _facts(data: config.Data, split: str) -> Facts:
    if data.facts == "simulated":
        return Simulated(split)
    from rmt_jax.data.babi.official import Official

    if data.facts == "both":
        return Mixed(Simulated(split), Official(data.babi_dir, split))
    return Official(data.babi_dir, split)
