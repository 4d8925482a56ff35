"""Progress of an evaluation in tokens, over all tasks and lengths."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rmt_jax.cli import progress_bar, restart_clock
from rmt_jax.evaluation.answer_log import AnswerRecord
from rmt_jax.report import tables
from rmt_jax.results import EvalResult


class TokenProgress:
    """A bar with speed and time left.

    A length is nominal, and may be in the tokens of another tokenizer. From the first batch of a
    length on, the tokens that its texts really held are the estimate for those to come.
    """

    def __init__(self, unread: Counter[str], shown: bool):
        """`unread`: nominal tokens to read, by length."""
        self.unread, self.shown = Counter(unread), shown
        self.nominal, self.read = Counter[str](), Counter[str]()  # tokens read so far, by length
        self.bar: Any = None

    def __enter__(self) -> "TokenProgress":
        self.bar = progress_bar(
            self.unread.total(),
            "tok",
            shown=self.shown,
            unit_scale=True,
            smoothing=0,
            bar_format="{percentage:3.0f}% |{bar:16}| {desc}[{elapsed}<{remaining}, {rate_fmt}]",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add_tokens(self, tokens: int) -> None:
        self.bar.update(tokens)

    def tokens_found(self, tokens: int) -> None:
        """Tokens that an evaluation before this one has read: done, but not in this time."""
        self.bar.n += tokens
        restart_clock(self.bar)

    def batch_done(
        self, name: str, length: str, records: Sequence[AnswerRecord], nominal: int
    ) -> None:
        """After a batch of texts of `length`, nominally `nominal` tokens in all; `records` are all
        answers so far of the task and length that are called `name`."""
        if not self.nominal and nominal < self.unread.total():
            restart_clock(self.bar)
        self.unread[length] -= nominal
        self.nominal[length] += nominal
        self.read[length] += self.bar.n - self.read.total()
        ratio = {n: self.read[n] / self.nominal[n] for n in self.nominal}
        ahead = sum(count * ratio.get(n, 1.0) for n, count in self.unread.items())
        self.bar.total = self.bar.n + round(ahead)
        right = sum(r.output == r.target for r in records)
        self.bar.set_description_str(f"{name}: {right} of {len(records)} exact ", refresh=False)

    def result_done(self, result: EvalResult) -> None:
        accuracy = 100 * result.accuracy(tables.main_rule([result]))
        self.bar.set_description_str(
            f"{result.task} {result.length}: {accuracy:.0f} % ", refresh=False
        )
