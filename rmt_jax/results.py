"""What an evaluation finds, which every table and picture shows: one record per task and length,
and one per set of texts that a language is modelled on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rmt_jax.scores import wilson


@dataclass(frozen=True)
class EvalResult:
    """Accuracy of one task at one length. Rates are fractions, not per cent."""

    task: str
    length: str  # as asked for: "4k", "2s"
    samples: int
    right: dict[str, float]  # score -> right answers, or the sum of what each answer scores
    majority: float = 0.0  # accuracy of the most common answer
    chance: float = 0.0  # accuracy of a random answer
    tokens: float = 0.0  # read per sample, on average, question included
    characters: float = 0.0  # of the same text, on average
    tokenizer: str = ""  # whose tokens
    counted_by: str = ""  # whose tokens the length names, where they are not the model's own
    gpt2_tokens: float = 0.0  # the same text as GPT-2 counts it, for published lengths; 0: unknown
    decoding: str = "greedy"  # free-running greedy | teacher-forced
    chat: bool = False  # asked in the tokenizer's chat template?
    reset: dict[str, float] | None = None  # `right` with the memory reset before each segment
    perturb: str = ""
    trained: bool | None = None  # does training cover this task and length?
    seconds: float = 0.0
    depths: tuple[tuple[float, bool], ...] = field(default=())  # (depth of the last fact, right)
    facts: float = 0.0  # in a text, on average; 0: not known
    cell: str = ""  # the memory cell
    memory: int = 0  # numbers that the memory of a text is

    def accuracy(self, rule: str = "official") -> float:
        return self.right[rule] / self.samples if self.samples else math.nan

    def interval(self, rule: str = "official") -> tuple[float, float]:
        """Wilson's 95 % interval, (low, high); wider than need be for a score between 0 and 1."""
        return wilson(self.right[rule], self.samples)

    def reset_accuracy(self, rule: str = "official") -> float | None:
        """None where the control was not measured."""
        return None if self.reset is None else self.reset[rule] / self.samples


@dataclass(frozen=True)
class TextSums:
    """What a model made of tokens of one text: sums, so that they can be put together."""

    tokens: int = 0  # that were predicted
    bytes: int = 0  # of text in these tokens
    nats: float = 0.0  # their cross-entropy
    reset_nats: float | None = None  # with the memory reset before each segment; None: not measured


@dataclass(frozen=True)
class TextBin:
    """Tokens of several texts: all, or those at certain places.

    The errors are standard errors over texts, of bits per byte (`ratio_error`): None for one text.
    """

    view: str  # all | position | segment | place (`PerplexityResult`)
    start: int  # the first place
    stop: int  # the place behind the last; 0: there is no last
    sums: TextSums
    texts: int  # that have tokens there
    error: float | None = None
    reset_error: float | None = None
    gain_error: float | None = None  # of `gain`, text by text

    @property
    def bits_per_byte(self) -> float:
        return self.sums.nats / math.log(2) / self.sums.bytes

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.sums.nats / self.sums.tokens, 700))

    @property
    def reset_bits_per_byte(self) -> float | None:
        nats = self.sums.reset_nats
        return None if nats is None else nats / math.log(2) / self.sums.bytes

    @property
    def reset_perplexity(self) -> float | None:
        nats = self.sums.reset_nats
        return None if nats is None else math.exp(min(nats / self.sums.tokens, 700))

    @property
    def gain(self) -> float | None:
        """Bits per byte that the memory saves."""
        reset = self.reset_bits_per_byte
        return None if reset is None else reset - self.bits_per_byte


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model predicts the tokens of texts.

    Views of the same tokens: `position`, their number in the text; `segment` and `place`, where the
    token before stands, which predicts them. All count from 0. The first token of a text is not
    predicted.
    """

    name: str  # of the texts
    tokenizer: str
    segment_tokens: int
    total: TextBin
    bins: tuple[TextBin, ...]
    texts: tuple[tuple[str, TextSums], ...]  # name and sums of each

    def view(self, name: str) -> list[TextBin]:
        return [one for one in self.bins if one.view == name]


def ratio_error(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Standard error of sum(above) / sum(below), pairs drawn independently: of a ratio estimator,
    by linearisation (Cochran 1977, section 6.4). None for fewer than two pairs."""
    count, whole = len(above), sum(below)
    if count < 2:
        return None
    ratio = sum(above) / whole
    squares = sum((a - ratio * b) ** 2 for a, b in zip(above, below, strict=True))
    return math.sqrt(count / (count - 1) * squares) / whole
