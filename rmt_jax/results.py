"""What an evaluation finds: one record per task and length, which every table and picture shows."""

import math
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
