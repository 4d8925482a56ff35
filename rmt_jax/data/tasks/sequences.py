"""Copy and reverse (Graves et al. 2014, arXiv 1410.5401; Bulatov et al. 2022, arXiv 2207.06881):
symbols are to be given back as they were, or backwards.

The sequence stands somewhere in the config's background, so that a longer text is a longer delay;
with `data.background=none` the text is the sequence alone.
"""

from dataclasses import dataclass

from rmt_jax import config
from rmt_jax.data import draws
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Story, StoryOptions
from rmt_jax.data.tasks import Task, register
from rmt_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    size: int = config.setting(8, "Length of the sequence.", unit="symbols", least=1)
    symbols: int = config.setting(16, "Different symbols that there are.", least=2)


class Sequence(Task):
    """A sequence and what is to be made of it."""

    suite = "sequences"
    Options = Options
    scores = ("exact",)
    question = ""

    def answer(self, symbols: list[str]) -> list[str]:
        """What is to be said of a sequence."""
        raise NotImplementedError

    def __init__(self, data: config.Data):
        super().__init__(data)
        self.symbols = draws.symbols(self.options.symbols)

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        return self.options.size * max(len(tokenizer.sentence(one)) for one in self.symbols)

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        def draw(attempt: int) -> list[str]:
            rng = AddressedRng(seed, index, self.seed, attempt)
            return [rng.pick(self.symbols) for _ in range(self.options.size)]

        symbols = draws.of_split(split, draw, lambda found: found)
        fact = f"Sequence: {' '.join(symbols)}."
        return Story(self.name, (fact,), self.question, " ".join(self.answer(symbols)), (0,))


@register("copy")
class Copy(Sequence):
    name = "copy"
    description = "Repeat the sequence."
    paraphrases = ("Say the symbols once more.", "Give the sequence back as it is.")
    question = "The sequence?"
    question_forms = (r"The sequence\?",)

    def answer(self, symbols: list[str]) -> list[str]:
        return symbols


@register("reverse")
class Reverse(Sequence):
    name = "reverse"
    description = "Repeat the sequence backwards."
    paraphrases = ("Say the symbols from the last to the first.", "Turn the sequence round.")
    question = "The sequence backwards?"
    question_forms = (r"The sequence backwards\?",)

    def answer(self, symbols: list[str]) -> list[str]:
        return symbols[::-1]
