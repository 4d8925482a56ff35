"""Key-value retrieval (Liu et al. 2023, 'Lost in the Middle', arXiv 2307.03172): a JSON object of
random UUIDs, and a question about one of its keys.

The keys are all different; the key asked is drawn evenly, so that results by depth are the paper's
curve. An object has as many pairs as the length of the text has room for.
"""

from dataclasses import dataclass

from rmt_jax import config
from rmt_jax.data import draws
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Room, Story, StoryOptions
from rmt_jax.data.tasks import Task, TaskError, register
from rmt_jax.data.tokenizer import Tokenizer

PAIRS = 8  # of a text without a length


@dataclass(frozen=True)
class Options:
    pairs: int = config.setting(
        0, "Pairs in a text; 0: as many as its length has room for.", unit="pairs", least=0
    )
    digits: int = config.setting(
        32, "Hexadecimal digits of a key and of a value; 32 make a UUID.", least=4, most=32
    )


@register("kv_retrieval")
class KeyValueRetrieval(Task):
    name = "kv_retrieval"
    suite = "kv_retrieval"
    Options = Options
    description = "Extract the value of the key in the JSON object."
    paraphrases = (
        "The text is a JSON object: look up the key.",
        "Say which value stands behind the key.",
    )
    question_forms = (r'Key: "[0-9a-f-]+"',)
    scores = ("exact", "contains")

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        hyphens = 4 if self.options.digits == 32 else 0
        return 1 + self.options.digits + hyphens  # a token holds a character or more

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        address, digits = (seed, index, self.seed), self.options.digits

        def first(attempt: int) -> list[str]:
            return draws.hexadecimal(AddressedRng(*address, 0, attempt), 2, digits)

        # Splits share no first pair.
        begin = draws.of_split(split, first, lambda pair: pair)
        rng = AddressedRng(*address, 1)
        share = rng.uniform()
        wanted = rng.between(*options.facts) if options.facts else self.options.pairs
        if wanted or not options.room:
            pairs = self._pairs(begin, (wanted or PAIRS) - 1, rng)
        else:
            pairs = self._fitting(begin, share, options.room, rng)
        asked = int(share * len(pairs))
        return Story(
            self.name,
            _facts(pairs),
            _question(pairs[asked][0]),
            pairs[asked][1],
            supporting=(asked,),
            haystack=None if wanted else (),
        )

    def _pairs(self, begin: list[str], more: int, rng: AddressedRng) -> list[tuple[str, str]]:
        """The first pair, and `more` with other keys."""
        held = {begin[0]: begin[1]}
        while len(held) <= more:
            found = draws.hexadecimal(rng, 2 * (more + 1 - len(held)), self.options.digits)
            for key, value in zip(found[::2], found[1::2], strict=True):
                held.setdefault(key, value)
        return list(held.items())

    def _fitting(
        self, begin: list[str], share: float, room: Room, rng: AddressedRng
    ) -> list[tuple[str, str]]:
        """As many pairs as there is room for, with the question about the one at `share`."""

        def tokens(pairs: list[tuple[str, str]]) -> int:
            question = _question(pairs[int(share * len(pairs))][0])
            size = sum(len(room.tokenizer.sentence(fact)) for fact in _facts(pairs))
            return size + room.tokens - room.left(question)

        pairs = [(begin[0], begin[1])]
        each = max(1, tokens(pairs))
        while tokens(pairs) <= room.tokens:  # until there are too many
            pairs = self._pairs(begin, len(pairs) + max(1, room.tokens // each), rng)
        while pairs and tokens(pairs) > room.tokens:
            over = tokens(pairs) - room.tokens
            pairs = pairs[: -max(1, over // (2 * each))]
        if not pairs:
            raise TaskError(f"kv_retrieval: no pair fits in a text of {room.tokens} tokens.")
        return pairs


def _facts(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """A JSON object in pieces, one a pair."""
    pieces = [f'"{key}": "{value}",' for key, value in pairs]
    pieces[-1] = pieces[-1].removesuffix(",") + "}"
    return ("{" + pieces[0], *pieces[1:])


def _question(key: str) -> str:
    return f'Key: "{key}"'
