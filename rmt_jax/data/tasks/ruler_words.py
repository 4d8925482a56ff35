"""RULER's aggregation tasks (arXiv 2404.06654): which words stand most often in a text.

cwe: a numbered list in which ten words stand 30 times and all others three times (six times and
once in short texts). fwe: made-up words, the k-th of which stands in proportion to k^-alpha; the
first is '...', noise, and the next three are asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_lowercase

import numpy as np

from rmt_jax import config
from rmt_jax.data import draws, words
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Document, StoryOptions
from rmt_jax.data.tasks import TaskError, register
from rmt_jax.data.tasks.ruler import Ruler
from rmt_jax.data.tokenizer import Tokenizer

SHORT = 2500  # tokens of a context; RULER: a file's length under 4,096, of which a third is example
WORDS = 40  # different words of a list without a length
CODED = 150  # words of a coded text without a length


@dataclass(frozen=True)
class CommonOptions:
    common: int = config.setting(10, "Words that are asked.", unit="words", least=1)
    common_repeats: int = config.setting(
        0, "How often each of them stands; 0: 30 times, 6 in short texts.", least=0
    )
    other_repeats: int = config.setting(
        0, "How often every other word stands; 0: 3 times, 1 in short texts.", least=0
    )
    words: int = config.setting(
        0, "Different words in a text; 0: as many as its length has room for.", least=0
    )


@register("cwe")
class CommonWords(Ruler):
    """Common words extraction."""

    name = "cwe"
    Options = CommonOptions
    description = "Find the most common words in the list."
    paraphrases = ("Say which words the list repeats most.", "Count the words: which lead?")
    instruction = (
        "Below is a numbered list of words. In these words, some appear more often than others."
        " Memorize the ones that appear most often.\n"
    )
    question_forms = (r"What are the \d+ most common words in the above list\?",)
    tokens_to_generate = 120

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        return self.options.common * (_most_tokens(tokenizer) + 1) - 1

    def answer_prefix(self, question: str) -> str:
        return (
            f" Answer: The top {self.options.common} words that appear most often in the list are:"
        )

    def example_options(self, tokens: int) -> Mapping[str, object]:
        count, common, other = (20, 3, 1) if tokens < 4096 else (40, 10, 3)
        repeats = {"common_repeats": common, "other_repeats": other}
        return {"words": count, "common": self.options.common, **repeats}

    def example_answer(self, parts: Sequence[str]) -> str:
        return " ".join(f"{i + 1}. {word}" for i, word in enumerate(parts)) + "\n"

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Document:
        address, count = (seed, index, self.seed), self.options.common

        def draw(attempt: int) -> list[str]:
            return AddressedRng(*address, 0, attempt).sample(_known(), count)

        # In the order of the alphabet, which a model can learn.
        common = sorted(draws.of_split(split, draw, sorted))
        question = f"What are the {count} most common words in the above list?"
        room = options.room
        left = room.left(question) if room else SHORT
        repeats = (6, 1) if left < SHORT else (30, 3)
        often = self.options.common_repeats or repeats[0]
        others = self.options.other_repeats or repeats[1]
        if others >= often:
            raise TaskError(f"cwe: common words stand {often} times, others {others} times.")
        most = (self.options.words or WORDS) - count
        if room and not self.options.words:  # an entry '7. word' has three tokens or more
            most = left // (3 * others)
        rest = _other_words(AddressedRng(*address, 1), common, max(0, most))

        def text(number: int) -> str:
            listed = common * often + rest[:number] * others
            order = AddressedRng(*address, 2).numpy.permutation(len(listed))
            return " ".join(f"{i + 1}. {listed[place]}" for i, place in enumerate(order))

        if room and not self.options.words:
            each = (room.count(text(most)) - room.count(text(0))) / max(1, most)
            guess = int((left - room.count(text(0))) / each) if each else 0
            most = _largest(lambda number: room.count(text(number)) <= left, guess, most)
            if most < 1:
                raise TaskError(
                    f"cwe: {count} words {often} times each do not fit in a text of {room.tokens}"
                    " tokens."
                )
        return Document(self.name, text(most), question, (", ".join(common),), tuple(common))


@lru_cache(maxsize=1)
def _known() -> tuple[str, ...]:
    """Words of the package's lists and of its vocabulary."""
    kinds = ("objects", "places", "adjectives")
    listed = (word for kind in kinds for word in words.listed(kind))
    return tuple(dict.fromkeys((*words.common("objects"), *listed)))


@lru_cache(maxsize=8)
def _most_tokens(tokenizer: Tokenizer) -> int:
    return max(len(tokenizer.sentence(word)) for word in _known())


def _other_words(rng: AddressedRng, common: Sequence[str], count: int) -> list[str]:
    """Different words that are not common: known ones, then made-up ones."""
    taken = set(common)
    known = [_known()[i] for i in rng.numpy.permutation(len(_known()))]
    found = [word for word in known if word not in taken][:count]
    made_up = draws.distinct(
        lambda: words.invented("objects", rng), max(0, count - len(found)), _known()
    )
    return found + made_up


@dataclass(frozen=True)
class FrequentOptions:
    alpha: float = config.setting(
        2.0, "The k-th word stands in proportion to k^-alpha.", least=1.1, most=4
    )
    letters: int = config.setting(6, "Letters of a word.", least=4, most=20)


@register("fwe")
class FrequentWords(Ruler):
    """Frequent words extraction."""

    name = "fwe"
    Options = FrequentOptions
    description = "Find the three most frequent coded words."
    paraphrases = ("Say which three words stand most often.", "Count the coded words: which lead?")
    instruction = (
        "Read the following coded text and track the frequency of each coded word. Find the three"
        " most frequently appeared coded words. "
    )
    question_forms = (
        r"Do not provide any explanation\. Please ignore the dots '\.\.\.\.'\. What are the three"
        r" most frequently appeared words in the above coded text\?",
    )
    tokens_to_generate = 50

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        return 3 * (1 + self.options.letters) + 2

    def answer_prefix(self, question: str) -> str:
        return (
            " Answer: According to the coded text above, the three most frequently appeared words"
            " are:"
        )

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Document:
        question = (
            "Do not provide any explanation. Please ignore the dots '....'. What are the three most"
            " frequently appeared words in the above coded text?"
        )
        address, room = (seed, index, self.seed), options.room

        def words_of(rng: AddressedRng, count: int, taken: Sequence[str] = ()) -> list[str]:
            letters = self.options.letters
            return draws.distinct(
                lambda: "".join(rng.pick(ascii_lowercase) for _ in range(letters)), count, taken
            )

        def draw(attempt: int) -> list[str]:
            return words_of(AddressedRng(*address, 0, attempt), 3)

        asked = draws.of_split(split, draw, sorted)
        kinds = max(6, room.tokens // 50) if room else 6
        rest = words_of(AddressedRng(*address, 1), kinds - 4, asked)
        every = ["...", *asked, *rest]
        shares = _zeta_shares(self.options.alpha, kinds)

        def text(number: int) -> str:
            counts = (number * shares).astype(int)
            said = [word for word, n in zip(every, counts, strict=True) for _ in range(n)]
            order = AddressedRng(*address, 2).numpy.permutation(len(said))
            return " ".join(said[place] for place in order)

        number = CODED
        if room:
            left = room.left(question)
            sizes = np.array([room.count(word) for word in every])
            guess = int(left / (shares * sizes).sum())
            number = _largest(lambda number: room.count(text(number)) <= left, guess, 2 * left)
        while number and not _clear((number * shares).astype(int)):
            number -= 1
        if not number:
            raise TaskError(f"fwe: a text of {options.max_tokens} tokens is too short to count in.")
        return Document(self.name, text(number), question, (", ".join(asked),), tuple(asked))


def _zeta_shares(alpha: float, kinds: int) -> np.ndarray:
    """k^-alpha / zeta(alpha) for k = 1 ... kinds; zeta by Euler and Maclaurin's sum."""
    n = np.arange(1, 1001.0)
    tail = 1000 ** (1 - alpha) / (alpha - 1) - 1000**-alpha / 2 + alpha * 1000 ** (-alpha - 1) / 12
    return np.arange(1, kinds + 1.0) ** -alpha / ((n**-alpha).sum() + tail)


def _clear(counts: np.ndarray) -> bool:
    """Do the second to fifth words differ in how often they stand?"""
    return bool((counts[1:4] > counts[2:5]).all())


def _largest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """The largest number from 0 to `most` that fits, by steps that double from a guess; -1 where
    none does."""
    low, high = -1, most + 1  # low fits or is -1; high does not fit
    number, step = min(max(guess, 0), most), 1
    while high - low > 1:
        if fits(number):
            low = number
            number = number + step if high > most else (low + high) // 2
        else:
            high = number
            number = number - step if low < 0 else (low + high) // 2
        step *= 2
        number = min(max(number, low + 1), high - 1)
    return low
