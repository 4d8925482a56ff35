"""Ask a model many questions about long texts, and score the answers: a `Cell` a task and length.

A context of any length is read with constant memory; samples are read in batches; each batch size
is compiled once for all lengths. Answers are kept in OUT/cells as they come, so that a stopped
evaluation continues where it stopped, and one of more questions asks the new ones only.
"""

import dataclasses
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rmt_jax import scores
from rmt_jax.evaluation import answering, sources
from rmt_jax.evaluation.answer_log import Kept, Row
from rmt_jax.report import predictions, tables
from rmt_jax.scores import Cell

# Tokens held on the host at once, all samples of a batch together: at most 16 MB, so that a million
# tokens take no more memory than thirty thousand. An accelerator wants texts side by side: 512 MB.
HELD, HELD_FOR_ACCELERATORS = 4_000_000, 128_000_000


class EvaluationError(ValueError):
    """An evaluation that cannot be run; the message is a sentence for the user."""


def evaluate(
    model: Any,
    *,
    tasks: Sequence[str] = (),
    lengths: Sequence[str] = (),
    samples: int = 0,
    split: str = "validation",
    batch: int = 0,
    seed: int | None = None,
    reset: bool = True,
    decoding: str = "greedy",
    perturb: Sequence[str] = ("",),
    source: Any = None,
    out: Path | None = None,
    name: str = "",
    progress: bool = True,
) -> list[Cell]:
    """Accuracy of `model` (an `rmt_jax.api.Model`), a cell a perturbation, task and length.

    What is left out comes from the model's config (`config.evaluation`, `config.data.tasks`).
    `source` hands out the questions (`sources.Generated` by default, made from the config's facts
    and background of `split`). `reset` also measures the control with the memory reset at each
    segment. `decoding` is 'greedy' (free-running) or 'teacher-forced'. With `out`, answers are kept
    there as they come (`rows`), and no question is asked twice.

    Raises EvaluationError, `sources.QuestionError` or `answering.AnsweringError`: sentences.
    """
    config = model.config
    tasks = sources.chosen(tasks or config.data.tasks)
    lengths = tuple(lengths) or tuple(config.evaluation.lengths)
    samples = samples or config.evaluation.samples
    batch = batch or config.evaluation.batch
    start: int = config.evaluation.seed if seed is None else seed
    if decoding not in ("greedy", "teacher-forced"):
        raise EvaluationError(f"decoding is 'greedy' or 'teacher-forced', not '{decoding}'.")
    if samples < 1 or batch < 1:
        raise EvaluationError(f"samples ({samples}) and batch ({batch}) must be 1 or more.")
    source = source or sources.Generated(model, split=split, seed=start)
    for how in perturb:
        source.check(how)
    jobs = [
        Job(task, length, source.count(task, length, samples), how, decoding)
        for how in perturb
        for length in lengths
        for task in tasks
    ]
    if out is not None:
        (out / "cells").mkdir(parents=True, exist_ok=True)  # before an hour of reading
    key = fingerprint(model, source, start, reset)
    kept = {job: Kept(out and out / "cells", job.stem, key) for job in jobs}
    left = {job: max(0, job.samples - len(kept[job].rows)) for job in jobs}
    tokens = Counter[str]()
    for job, count in left.items():
        tokens[job.length] += count * source.tokens(job.length)
    cells, bar = [], Bar(tokens, progress)
    with bar:
        for job in jobs:
            rows = measure(model, source, job, kept[job], batch, reset, bar)
            cells.append(cell_of(model, source, job, rows))
            if out is not None:
                predictions.write(out / "predictions", name or "rmt_jax/model", job, rows, model)
            bar.done(cells[-1])
    return cells


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell to measure."""

    task: str
    length: str
    samples: int
    perturb: str = ""
    decoding: str = "greedy"

    @property
    def stem(self) -> str:
        parts = [self.task, self.length, self.perturb, self.decoding.replace("greedy", "")]
        return "_".join(p for p in parts if p)


def measure(
    model: Any, source: Any, job: Job, kept: Kept, batch: int, reset: bool, bar: "Bar"
) -> list[Row]:
    """Asks what is not kept yet, in batches, each of which is composed only when its turn comes."""
    size = batch_size(batch, job.samples, source.tokens(job.length))
    room = source.room(job.task, job.perturb)
    for first in range(len(kept.rows), job.samples, size):
        start = time.monotonic()
        some = source.ask(
            job.task, job.length, range(first, min(first + size, job.samples)), job.perturb
        )
        asked = [q.asked for q in some]
        if job.decoding == "greedy":
            said, control = answering.answer(
                model, asked, room=room, batch=size, reset=reset, tick=bar.tick
            )
        else:
            answers = [q.answer for q in some]
            said, control = answering.forced(
                model, asked, answers, room=room, batch=size, reset=reset, tick=bar.tick
            )
        seconds = round((time.monotonic() - start) / len(some), 4)
        kept.add(
            [
                Row(
                    question=q.question,
                    target=q.target,
                    output=said[k],
                    control=control[k] if control else None,
                    depth=q.depth,
                    tokens=len(q.asked.context) + len(q.asked.tail),
                    characters=q.characters,
                    gpt2_tokens=q.gpt2_tokens,
                    seconds=seconds,
                )
                for k, q in enumerate(some)
            ]
        )
        bar.show(job, kept.rows, len(some) * source.tokens(job.length))
    return kept.rows[: job.samples]


def cell_of(model: Any, source: Any, job: Job, rows: Sequence[Row]) -> Cell:
    """The score of all rows of a cell."""
    rules = scores.RULES if known_answers(job.task, rows) else ("exact", "lm_eval")
    main = [scores.score(next(iter(rules)), job.task, r.question, r.target, r.output) for r in rows]
    targets, tokens = [r.target for r in rows], _mean(r.tokens for r in rows)
    controls = [r.control for r in rows if r.control is not None]
    return Cell(
        task=job.task,
        length=job.length,
        samples=len(rows),
        right=count_right(rules, job.task, rows, [r.output for r in rows]),
        majority=scores.majority(targets),
        chance=scores.chance(job.task, targets),
        tokens=tokens,
        characters=_mean(r.characters for r in rows),
        gpt2_tokens=_mean(r.gpt2_tokens for r in rows),
        tokenizer=model.tokenizer.name,
        counted=source.counted,
        decoding=job.decoding,
        reset=count_right(rules, job.task, rows, controls) if controls else None,
        perturb=job.perturb,
        trained=trained(model.config, job, tokens),
        seconds=round(sum(r.seconds for r in rows), 2),
        depths=tuple(
            (round(r.depth, 4), bool(right))
            for r, right in zip(rows, main, strict=True)
            if r.depth is not None
        ),
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def known_answers(task: str, rows: Sequence[Row]) -> bool:
    """Are the targets among the task's labels? The official rule means nothing for other words."""
    labels = set(scores.LABELS.get(task, ()))
    return all(r.target in labels or labels.issuperset(r.target.split(",")) for r in rows)


def count_right(
    rules: Iterable[str], task: str, rows: Sequence[Row], outputs: Sequence[str]
) -> dict[str, int]:
    return {
        rule: sum(
            scores.score(rule, task, r.question, r.target, output)
            for r, output in zip(rows, outputs, strict=True)
        )
        for rule in rules
    }


def batch_size(batch: int, samples: int, tokens: int) -> int:
    """`batch`, or the power of two below it that keeps the texts held within `HELD` tokens: few
    sizes, so few compilations."""
    import jax

    held = HELD if jax.default_backend() == "cpu" else HELD_FOR_ACCELERATORS
    size = min(batch, samples)
    if size * tokens > held:
        size = max(1, held // max(1, tokens))
        size = 1 << (size.bit_length() - 1)
    return size


def trained(config: Any, job: Job, tokens: float) -> bool:
    """Was the task trained, at this length or a longer one, in this world?"""
    longest = config.longest_segments * config.model.segment_tokens
    return job.task in config.data.tasks and tokens <= longest and not job.perturb


def fingerprint(model: Any, source: Any, seed: int, reset: bool) -> str:
    """Of everything that a cell's numbers depend on: weights, config, questions."""
    tokens = model.tokenizer.fingerprint()
    parts = (answering.mark(model), source.describe(), seed, reset, tokens)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Bar:
    """Progress in tokens over all cells: speed and time left are tqdm's.

    What a length says is nominal, and may be in the tokens of another tokenizer: from a length's
    first batch on, what its texts really held counts for those to come.
    """

    def __init__(self, left: Counter[str], shown: bool):
        """`left`: nominal tokens to read, by length."""
        self.left, self.shown = Counter(left), shown
        self.asked, self.read = Counter[str](), Counter[str]()  # nominal and real, by length
        self.bar: Any = None

    def __enter__(self) -> "Bar":
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.left.total(),
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.shown,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            bar_format="{percentage:3.0f}% |{bar:16}| {desc}[{elapsed}<{remaining}, {rate_fmt}]",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tick(self, tokens: int) -> None:
        self.bar.update(tokens)

    def show(self, job: Job, rows: Sequence[Row], asked: int) -> None:
        """After a batch of texts of nominally `asked` tokens."""
        self.left[job.length] -= asked
        self.asked[job.length] += asked
        self.read[job.length] += self.bar.n - self.read.total()
        real = {length: self.read[length] / self.asked[length] for length in self.asked}
        ahead = sum(count * real.get(length, 1.0) for length, count in self.left.items())
        self.bar.total = self.bar.n + round(ahead)
        right = sum(r.output == r.target for r in rows)
        self.bar.set_description_str(f"{job.stem}: {right} of {len(rows)} right ", refresh=False)

    def done(self, cell: Cell) -> None:
        rule = tables.main_rule([cell])
        self.bar.set_description_str(
            f"{cell.task} {cell.length}: {100 * cell.accuracy(rule):.0f} % ", refresh=False
        )
