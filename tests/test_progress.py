"""The bar of an evaluation: what it counts and what it promises."""

import time
from collections import Counter

from rmt_jax.evaluation.progress import TokenProgress


def test_progress_counts_what_texts_really_hold(capsys):
    """1,000 of another tokenizer's tokens may be 1,200 of ours: the bar ends at 100 %."""
    with TokenProgress(Counter({"1k": 4000, "2k": 2000}), shown=True) as bar:
        for _ in range(4):
            bar.add_tokens(1200)
            bar.batch_done("qa1_1k", "1k", [], nominal=1000)
        assert bar.bar.total == 4 * 1200 + 2000  # of the other length nothing is known yet
        bar.add_tokens(1800)
        bar.batch_done("qa1_2k", "2k", [], nominal=2000)
        assert bar.bar.total == bar.bar.n == 6600
    assert "100% |" in capsys.readouterr().err


def test_the_time_left_knows_nothing_of_compiling(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with TokenProgress(Counter({"1k": 4000}), shown=True) as progress:
        for seconds in (60, 1):  # the first batch compiles
            clock[0] += seconds
            progress.add_tokens(1000)
            progress.batch_done("qa1_1k", "1k", [], nominal=1000)
        said = str(progress.bar)
    assert "00:01<00:02, 1.00ktok/s" in said
