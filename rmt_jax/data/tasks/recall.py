"""Associative recall with rewrites (ARMT, arXiv 2407.04841): pairs of a key and a value, and a
question about one key.

    Data(tasks=("recall",), background="none", task_options={"recall": {"key_symbols": 512}})

The paper's setting: keys and values are short sequences of 16 symbols, `key_size` and `value_size`
of them; 'remember' (`rewrites=0`) has every key once, 'rewrite' gives keys other values later on,
of which the last one counts. The question is a key, drawn evenly from those in the text. A pair is
'b f a: k.', key, separator, value and end, and the question with its answer 'b f a ANSWER k END',
as there. With keys and values of one token both take four, so that no pair and no question is torn
where segments are a multiple of four.

A text holds as many pairs as its length has room for, so that lengths are numbers of pairs. With
`pairs`, or where a stage of training says how many facts a story has (`stages.0.facts`), it holds
so many, and the config's background, if there is one, hides them. Questions on the way
(`question_rates`) ask for the value that a key has there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rmt_jax import config
from rmt_jax.data import draws
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import IntermediateQuestion, Story, StoryOptions
from rmt_jax.data.tasks import Task, TaskError, register
from rmt_jax.data.tokenizer import Tokenizer

PAIRS = 16  # of a text without a length
BEGINNING = 4  # pairs that decide which split a text belongs to


@dataclass(frozen=True)
class Options:
    pairs: int = config.setting(
        0, "Pairs in a text; 0: as many as its length has room for.", unit="pairs", least=0
    )
    key_size: int = config.setting(3, "Length of a key.", unit="symbols", least=1)
    key_symbols: int = config.setting(16, "Symbols that keys are made of.", least=2)
    value_size: int = config.setting(1, "Length of a value.", unit="symbols", least=1)
    value_symbols: int = config.setting(16, "Symbols that values are made of.", least=2)
    rewrites: float = config.setting(
        0.25,
        "Chance that a pair gives another value to a key that the text has already; 0: every key"
        " stands once.",
        least=0,
        most=0.95,
    )


class Pair(NamedTuple):
    key: int
    value: int
    asked: bool  # may a question on the way follow it?


@register("recall")
class Recall(Task):
    name = "recall"
    suite = "recall"
    Options = Options
    description = "Give the last value of the key."
    paraphrases = (
        "Say which value this key was given last.",
        "What is the key's value now?",
    )
    question_forms = (r"[a-z]+( [a-z]+)*",)
    scores = ("exact",)

    def __init__(self, data: config.Data):
        super().__init__(data)
        options = self.options
        self.key_symbols = draws.symbols(options.key_symbols)
        self.value_symbols = draws.symbols(options.value_symbols)
        self.keys = options.key_symbols**options.key_size
        self.values = options.value_symbols**options.value_size
        if options.value_size == 1:
            self.labels = self.value_symbols

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        return self.options.value_size * max(len(tokenizer.sentence(s)) for s in self.value_symbols)

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        """Pairs are short: `options.room` says how many there may be, and not `max_facts`."""
        address, rng = (seed, index, self.seed), AddressedRng(seed, index, self.seed)
        wanted = rng.between(*options.facts) if options.facts else self.options.pairs
        room = None
        if options.room and (options.facts or not self.options.pairs):
            longest = _of_tokens(self.key_symbols, options.room.tokenizer, max)
            room = options.room.left(" ".join([longest] * self.options.key_size))
        most = wanted or (10**9 if options.room else PAIRS)

        def pairs(attempt: int, most: int) -> list[Pair]:
            return list(self._pairs(AddressedRng(*address, attempt, 0), most, room, options))

        def beginning(attempt: int) -> tuple[int, list[str]]:
            found = pairs(attempt, min(most, BEGINNING))
            if not found:
                raise TaskError(f"recall: no pair fits in a text of {options.max_tokens} tokens.")
            return attempt, [self._sentence(pair) for pair in found]

        # Splits share no beginning of a text.
        attempt, _ = draws.of_split(split, beginning, lambda found: found[1])
        return self._story(
            pairs(attempt, most),
            AddressedRng(*address, attempt, 1),
            None if wanted else (),
            options,
        )

    def _story(
        self,
        pairs: list[Pair],
        rng: AddressedRng,
        haystack: tuple[str, ...] | None,
        options: StoryOptions,
    ) -> Story:
        final = rng.pick(list(dict.fromkeys(pair.key for pair in pairs)))
        last = max(i for i, pair in enumerate(pairs) if pair.key == final)
        always = final if options.final_question_only else None
        return Story(
            self.name,
            tuple(self._sentence(pair) for pair in pairs),
            self._key(final),
            self._value(pairs[last].value),
            supporting=(last,),
            intermediate_questions=tuple(self._on_the_way(pairs, always, rng)),
            haystack=haystack,
        )

    def _pairs(
        self, rng: AddressedRng, most: int, room: int | None, options: StoryOptions
    ) -> Iterator[Pair]:
        """`most` pairs, or as many as fit in `room` tokens with the questions on the way (None: no
        limit)."""
        held, names, total = dict[int, int](), list[int](), 0
        tokenizer = options.room.tokenizer if options.room else None
        least = self._least(tokenizer) if tokenizer else 0
        for _ in range(most):
            if room is not None and total + least > room:
                return  # before there is no key left for a pair that would not fit
            if names and rng.uniform() < self.options.rewrites:
                key = rng.pick(names)
                value = rng.below(self.values - 1)
                value += value >= held[key]  # another one
            else:
                key, value = self._new_key(rng, held), rng.below(self.values)
                names.append(key)
            held[key] = value
            asked = options.question_rate > 0 and rng.uniform() < options.question_rate
            pair = Pair(key, value, asked)
            if room is not None and tokenizer:
                total += len(tokenizer.sentence(self._sentence(pair)))
                if total > room:
                    return
                total += self._question_tokens(pair, tokenizer)  # where another pair follows
            yield pair

    def _new_key(self, rng: AddressedRng, held: dict[int, int]) -> int:
        if len(held) == self.keys:
            raise TaskError(
                f"recall: a text asks for more than the {self.keys:,} different keys that"
                f" {self.options.key_symbols} symbols make, {self.options.key_size} to a key: raise"
                " key_symbols or key_size in config.data.task_options.recall, or ask for shorter"
                " texts."
            )
        while (key := rng.below(self.keys)) in held:
            pass
        return key

    def _question_tokens(self, pair: Pair, tokenizer: Tokenizer) -> int:
        """Of the question on the way that may follow a pair: the key, ANSWER, the answer, END. All
        keys and values take about as many."""
        if not pair.asked:
            return 0
        found = len(tokenizer.sentence(self._key(pair.key)))
        return found + len(tokenizer.sentence(self._value(pair.value))) + 2

    def _least(self, tokenizer: Tokenizer) -> int:
        """Tokens of the shortest pair."""
        key = _of_tokens(self.key_symbols, tokenizer, min)
        value = _of_tokens(self.value_symbols, tokenizer, min)
        pair = f"{' '.join([key] * self.options.key_size)}:"
        pair += f" {' '.join([value] * self.options.value_size)}."
        return len(tokenizer.sentence(pair))

    def _on_the_way(
        self, pairs: list[Pair], final: int | None, rng: AddressedRng
    ) -> Iterator[IntermediateQuestion]:
        """After pairs that may be asked about, but the last one: about the final key once it has a
        value, or, where none is given, about one drawn evenly from those so far."""
        held, names = dict[int, int](), list[int]()
        for number, pair in enumerate(pairs[:-1]):
            if pair.key not in held:
                names.append(pair.key)
            held[pair.key] = pair.value
            if pair.asked:
                key = rng.pick(names) if final is None else final
                if key in held:
                    value = self._value(held[key])
                    yield IntermediateQuestion(number, self._key(key), value)

    def _sentence(self, pair: Pair) -> str:
        return f"{self._key(pair.key)}: {self._value(pair.value)}."

    def _key(self, number: int) -> str:
        return _spell(number, self.key_symbols, self.options.key_size)

    def _value(self, number: int) -> str:
        return _spell(number, self.value_symbols, self.options.value_size)


@lru_cache(maxsize=16)
def _of_tokens(symbols: tuple[str, ...], tokenizer: Tokenizer, pick: Callable) -> str:
    """The symbol of the most tokens (`pick` is max), or of the fewest (min)."""
    return pick(symbols, key=lambda symbol: len(tokenizer.sentence(symbol)))


def _spell(number: int, symbols: tuple[str, ...], size: int) -> str:
    """A number written with these symbols as digits."""
    found = []
    for _ in range(size):
        number, digit = divmod(number, len(symbols))
        found.append(symbols[digit])
    return " ".join(reversed(found))
