"""RULER's needles and variable tracking (Hsieh et al. 2024, arXiv 2404.06654), generated here.

    python -m rmt_jax.prepare --format ruler --out DATA --tasks niah_single_1,vt --lengths 4k

| task             | needles                         | hidden in     | asked             |
|------------------|---------------------------------|---------------|-------------------|
| niah_single_1    | a word's number                 | noise         | that number       |
| niah_single_2    | a word's number                 | background    | that number       |
| niah_single_3    | a word's UUID                   | background    | that UUID         |
| niah_multikey_1  | four words, a number each       | background    | one's number      |
| niah_multikey_2  | a word's number                 | other needles | that number       |
| niah_multikey_3  | a UUID's UUID                   | other needles | that UUID         |
| niah_multivalue  | four numbers of one word        | background    | all four          |
| niah_multiquery  | four words, a number each       | background    | all four          |
| vt               | variables, each assigned to the | noise         | all of one number |
|                  | next, in a chain                |               |                   |

`background` is the config's, where RULER has essays; noise is RULER's, five sentences again and
again. `task_options: {niah_single_1: {haystack: background}}` takes another one. Words are ours.
Common and frequent words are in `ruler_words`, RULER's files in `data.ruler_files`. Questions are
RULER's; its instruction and the beginning of the answer stand in the files alone, for a model that
learned the task from its description.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar, NamedTuple

from rmt_jax import config
from rmt_jax.data import draws, words
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Room, Story, StoryOptions
from rmt_jax.data.tasks import Task, TaskError, register
from rmt_jax.data.tokenizer import Tokenizer

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."


class Ruler(Task):
    """What RULER's files say beside the text and the question."""

    suite = "ruler"
    scores = ("match_all", "exact")
    instruction: str  # in front of the text
    lead: ClassVar[str] = "Question: "  # in front of the question
    tokens_to_generate: ClassVar[int]  # room for the answer, a part of a file's length
    example_tokens: ClassVar[int] = 0  # of the worked example, at most; 0: no limit

    def answer_prefix(self, question: str) -> str:
        """How an answer begins."""
        raise NotImplementedError

    def example_options(self, tokens: int) -> Mapping[str, object]:
        """Options of the worked example in front of a text of `tokens` tokens; {} for none."""
        return {}

    def example_answer(self, parts: Sequence[str]) -> str:
        """The answer of the worked example, and the white space that follows."""
        return f"{' '.join(parts)}\n\n"


class Needles(NamedTuple):
    """A row of the table above."""

    name: str
    haystack: str  # noise, background or needles
    key: str  # words or uuids
    value: str  # numbers or uuids
    keys: int = 1
    values: int = 1  # of each key
    asked: int = 1


NIAH = (
    Needles("niah_single_1", "noise", "words", "numbers"),
    Needles("niah_single_2", "background", "words", "numbers"),
    Needles("niah_single_3", "background", "words", "uuids"),
    Needles("niah_multikey_1", "background", "words", "numbers", keys=4),
    Needles("niah_multikey_2", "needles", "words", "numbers"),
    Needles("niah_multikey_3", "needles", "uuids", "uuids"),
    Needles("niah_multivalue", "background", "words", "numbers", values=4),
    Needles("niah_multiquery", "background", "words", "numbers", keys=4, asked=4),
)
HAYSTACKS = ("", "noise", "background")


@dataclass(frozen=True)
class NiahOptions:
    haystack: str = config.setting(
        "", "What hides the needles; empty: as RULER has it.", choices=(*HAYSTACKS, "needles")
    )


class Niah(Ruler):
    """A needle in a haystack."""

    Options = NiahOptions
    lead = ""
    tokens_to_generate = 128
    question_forms = (
        r"What (is|are all) the special magic \w+ for .+ mentioned in the provided text\?",
    )

    def __init__(self, row: Needles, data: config.Data):
        super().__init__(data)
        self.row, self.name = row, row.name
        self.several = row.asked * row.values > 1
        kind = row.value if self.several else row.value.removesuffix("s")
        what = f"all special magic {kind}" if self.several else f"the special magic {kind}"
        self.description = f"Find {what}."
        self.paraphrases = (f"Say {what} that the text gives.", f"The text hides {what}: say it.")
        verb = "Some special magic {0} are" if self.several else "A special magic {0} is"
        self.instruction = (
            f"{verb.format(kind)} hidden within the following text. Make sure to memorize it."
            f" I will quiz you about the {kind} afterwards.\n"
        )
        self._ask = (
            f"{'are all' if self.several else 'is'} the special magic {kind} for ",
            " mentioned in the provided text",
        )

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        count = self.row.asked * self.row.values
        each = 36 if self.row.value == "uuids" else 7
        return count * (1 + each) + (count - 1)  # a token holds a character or more

    def answer_prefix(self, question: str) -> str:
        asked = question.removeprefix(f"What {self._ask[0]}").removesuffix(f"{self._ask[1]}?")
        what = self._ask[0].removeprefix("are all ").removeprefix("is ")
        return f" {what[0].upper()}{what[1:]}{asked}{self._ask[1]} {self._ask[0].split()[0]}"

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        def draw(attempt: int) -> Story:
            return self._needles(AddressedRng(seed, index, self.seed, attempt))

        story = draws.of_split(split, draw, lambda story: story.facts)
        haystack = self.options.haystack or self.row.haystack
        if haystack == "background":
            return story
        if haystack == "noise":
            return story._replace(haystack=(NOISE,))
        rng = AddressedRng(seed, index, self.seed, draws.ATTEMPTS)
        return story._replace(haystack=self._others(rng, story, options.room))

    def _needles(self, rng: AddressedRng) -> Story:
        row = self.row
        keys = draws.distinct(lambda: _key(rng, row.key), row.keys)
        values = draws.distinct(lambda: _value(rng, row.value), row.keys * row.values)
        needles = rng.shuffled([(keys[i // row.values], value) for i, value in enumerate(values)])
        asked = rng.sample(keys, row.asked)
        # In the order of the question, then of the text, which a model can learn.
        parts = tuple(value for key in asked for held, value in needles if held == key)
        query = asked[0]
        if len(asked) > 1:
            query = f"{', '.join(asked[:-1])}, and {asked[-1]}"
        return Story(
            self.name,
            tuple(self._sentence(*needle) for needle in needles),
            f"What {self._ask[0]}{query}{self._ask[1]}?",
            ", ".join(parts),
            supporting=tuple(i for i, (key, _) in enumerate(needles) if key in asked),
            parts=parts,
        )

    def _sentence(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.row.value, key=key, value=value)

    def _others(self, rng: AddressedRng, story: Story, room: Room | None) -> tuple[str, ...]:
        """Needles about other keys, as many as a text may take."""
        if room is None:
            return ()
        count = 2 * room.tokens // room.count(story.facts[0])
        found = []
        while len(found) < count:
            key, value = _key(rng, self.row.key), _value(rng, self.row.value)
            if not any(f" {key} " in fact for fact in story.facts):
                found.append(self._sentence(key, value))
        return tuple(found)


def _key(rng: AddressedRng, kind: str) -> str:
    if kind == "uuids":
        return draws.hexadecimal(rng, 1)[0]
    nouns = words.listed("objects") + words.listed("places")
    return f"{rng.pick(words.listed('adjectives'))}-{rng.pick(nouns)}"


def _value(rng: AddressedRng, kind: str) -> str:
    return draws.hexadecimal(rng, 1)[0] if kind == "uuids" else draws.number(rng)


for _row in NIAH:
    register(_row.name)(functools.partial(Niah, _row))


@dataclass(frozen=True)
class TrackingOptions:
    chains: int = config.setting(1, "Chains of variables; the first is asked.", least=1)
    hops: int = config.setting(4, "Variables of a chain beside its first one.", least=1)
    letters: int = config.setting(5, "Letters of a variable's name.", least=3, most=10)
    haystack: str = config.setting(
        "noise", "What hides the assignments.", choices=("noise", "background")
    )


@register("vt")
class VariableTracking(Ruler):
    """A number is assigned to a variable, that one to the next, and so on."""

    name = "vt"
    Options = TrackingOptions
    description = "Find all variables of this value."
    paraphrases = ("Say which variables hold the number.", "Name every variable that is equal.")
    question_forms = (r"Find all variables that are assigned the value \d+ in the text above\.",)
    instruction = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    )
    tokens_to_generate = 30
    example_tokens = 500

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        count = self.options.hops + 1
        return count * (1 + self.options.letters) + (count - 1)

    def answer_prefix(self, question: str) -> str:
        value = re.findall(r"\d+", question)[0]
        return (
            " Answer: According to the chain(s) of variable assignment in the text above,"
            f" {self.options.hops + 1} variables are assigned the value {value}, they are: "
        )

    def example_options(self, tokens: int) -> Mapping[str, object]:
        return {"letters": 3, "hops": min(10, self.options.hops), "chains": self.options.chains}

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        def draw(attempt: int) -> Story:
            return self._chains(AddressedRng(seed, index, self.seed, attempt))

        return draws.of_split(split, draw, lambda story: story.facts)

    def _chains(self, rng: AddressedRng) -> Story:
        size, count = self.options.hops + 1, self.options.chains
        if size * count > 26**self.options.letters // 2:
            raise TaskError(
                f"vt: {count} chains of {size} variables need more names than"
                f" {self.options.letters} letters make: raise letters in"
                " config.data.task_options.vt."
            )

        def name() -> str:
            return "".join(rng.pick(ascii_uppercase) for _ in range(self.options.letters))

        names = draws.distinct(name, size * count)
        values = draws.distinct(lambda: draws.number(rng, 5), count)
        chains = [names[i * size : (i + 1) * size] for i in range(count)]
        # The order within a chain holds; chains stand in one another.
        order = rng.shuffled([number for number in range(count) for _ in range(size)])
        said, facts = [0] * count, []
        for number in order:
            place, chain = said[number], chains[number]
            equal = f"VAR {chain[place - 1]}" if place else values[number]
            facts.append(f"VAR {chain[place]} = {equal}.")
            said[number] += 1
        return Story(
            self.name,
            tuple(facts),
            f"Find all variables that are assigned the value {values[0]} in the text above.",
            ", ".join(chains[0]),
            supporting=tuple(i for i, number in enumerate(order) if number == 0),
            parts=tuple(chains[0]),
            haystack=(NOISE,) if self.options.haystack == "noise" else None,
        )
