"""Asks a model many questions about long texts: one `EvalResult` per task and length.

A context of any length is read with constant memory, in batches; each batch size is compiled once
for all lengths. Answers are kept in OUT/answers as they come, and the memory of the texts that are
being read every minute: a stopped evaluation continues where it stopped, and one with more samples
asks only the new questions. The processes of a cluster share the batches; the first one writes the
answers.
"""

import dataclasses
import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rmt_jax.data.tasks import question_tasks
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import answering, scoring, sources
from rmt_jax.evaluation.answer_log import AnswerLog, AnswerRecord
from rmt_jax.evaluation.chat import chat_for
from rmt_jax.evaluation.kept_reading import KeptReading
from rmt_jax.evaluation.progress import TokenProgress
from rmt_jax.models import platform
from rmt_jax.report import predictions
from rmt_jax.results import EvalResult
from rmt_jax.runtime import startup, switches

# Tokens held on the host at once, all samples of a batch together: at most 16 MB, so that a million
# tokens take no more memory than thirty thousand. An accelerator wants texts side by side: 512 MB.
HOST_TOKENS, HOST_TOKENS_FOR_ACCELERATORS = 4_000_000, 128_000_000
log = logging.getLogger(__name__)


class EvaluationError(RmtError):
    """An evaluation that cannot be run; the message is a sentence for the user."""


@switches.neutral()
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
) -> list[EvalResult]:
    """Accuracy of `model` (an `rmt_jax.api.Model`), one result per perturbation, task and length.

    Args:
      tasks, lengths, samples, batch, seed: what is left out comes from the model's config
        (`config.evaluation`, `config.data.tasks`).
      split: of the stories and books that questions are made from, where no `source` is given.
      reset: also measure the control, with the memory reset before each segment.
      decoding: 'greedy' (free-running) or 'teacher-forced'.
      perturb: names of perturbations; '' is the unchanged text.
      source: hands out the questions (default: `sources.Generated`, as in training, or in the chat
        template of an instruct model that was trained on no task).
      out: keep answers there as they come, and ask no question twice.
      name: ORG/MODEL in the prediction files.
      progress: show a bar on standard error.

    Raises EvaluationError, `sources.QuestionError`, `chat.ChatError` or
    `answering.AnsweringError`: sentences.
    """
    config = model.config
    tasks = sources.check_tasks(tasks or question_tasks(config.data), config.data)
    if not tasks:
        raise EvaluationError(
            "This model was trained on texts that ask nothing: measure it with --perplexity, or"
            " name tasks with --tasks."
        )
    lengths = tuple(lengths) or tuple(config.evaluation.lengths)
    samples = samples or config.evaluation.samples
    batch = batch or config.evaluation.batch
    start: int = config.evaluation.seed if seed is None else seed
    if decoding not in ("greedy", "teacher-forced"):
        raise EvaluationError(f"decoding is 'greedy' or 'teacher-forced', not '{decoding}'.")
    if samples < 1 or batch < 1:
        raise EvaluationError(f"samples ({samples}) and batch ({batch}) must be 1 or more.")
    if source is None:
        template = chat_for(model, "auto" if decoding == "greedy" else "no")
        source = sources.Generated(model, split=split, seed=start, chat=template)
    for perturbation in perturb:
        source.check(perturbation)
    jobs = [
        EvalJob(task, length, source.count(task, length, samples), perturbation, decoding)
        for perturbation in perturb
        for length in lengths
        for task in tasks
    ]
    empty = [job for job in jobs if not job.samples]
    if empty:
        named = ", ".join(f"{job.task} at {job.length}" for job in empty)
        if len(empty) == len(jobs):
            raise EvaluationError(
                f"There are no texts of these lengths ({named}): ask for others, or for all."
            )
        log.warning("no texts, so left out: %s", named)
        jobs = [job for job in jobs if job.samples]
    fewer = [f"{job.task} {job.length} {job.samples:,}" for job in jobs if job.samples < samples]
    if fewer:
        said = ", ".join(dict.fromkeys(fewer))
        log.warning("fewer questions than the %s asked for: %s", f"{samples:,}", said)
    longest = max(source.tokens(job.length, job.task) for job in jobs)
    if longest > model.segment_tokens and not jax.tree.leaves(model.initial_memory(1).state):
        log.warning(
            "this model has no memory: of a text of more than %s tokens it sees the last segment"
            " alone; --segment_tokens makes it longer",
            f"{model.segment_tokens:,}",
        )
    folder = None if out is None else out / "answers"
    if folder is not None and startup.owner():
        folder.mkdir(parents=True, exist_ok=True)  # says what is wrong before hours of reading
    key = evaluation_fingerprint(model, source, start, reset)
    logs = {job: AnswerLog(folder, job.stem, key) for job in jobs}
    unread = Counter[str]()
    for job, answers in logs.items():
        missing = max(0, job.samples - len(answers.records))
        unread[job.length] += missing * source.tokens(job.length, job.task)
    results = []
    with TokenProgress(unread, progress and startup.owner()) as bar:
        for together in together_read(jobs):
            answer_questions(model, source, together, logs, batch, reset, bar)
            for job in together:
                records = logs[job].records[: job.samples]
                result = scoring.score_answers(
                    model,
                    records,
                    task=job.task,
                    length=job.length,
                    perturb=job.perturb,
                    decoding=job.decoding,
                    counted_by=source.counted,
                    chat=source.chat is not None,
                )
                results.append(result)
                if out is not None and startup.owner():
                    whose = name or "rmt_jax/model"
                    predictions.write(out / "predictions", whose, job, records, model)
                bar.result_done(result)
    return results


@dataclasses.dataclass(frozen=True)
class EvalJob:
    """The questions of one task at one length, for one `EvalResult`."""

    task: str
    length: str
    samples: int
    perturb: str = ""
    decoding: str = "greedy"

    @property
    def stem(self) -> str:
        """The name of its files."""
        parts = [self.task, self.length, self.perturb, self.decoding.replace("greedy", "")]
        return "_".join(p for p in parts if p)


def together_read(jobs: Sequence[EvalJob]) -> list[list[EvalJob]]:
    """Jobs that share batches, in their order: those of one length and perturbation."""
    groups = itertools.groupby(jobs, key=lambda job: (job.perturb, job.length))
    return [list(group) for _, group in groups]


def answer_questions(
    model: Any,
    source: Any,
    jobs: Sequence[EvalJob],
    logs: Mapping[EvalJob, AnswerLog],
    batch: int,
    reset: bool,
    progress: TokenProgress,
) -> None:
    """Completes the logs of jobs that are read together, in batches, each of which is made only
    when its turn comes: where a task has few questions, texts of the next one stand beside its own.
    Process p of n takes each n-th batch."""
    unasked = [(job, i) for job in jobs for i in range(len(logs[job].records), job.samples)]
    nominal = {job: source.tokens(job.length, job.task) for job in jobs}
    # Of all questions, so that a batch that was stopped in is the same one when it goes on.
    total = sum(job.samples for job in jobs)
    size = batch_size(batch, total, max(nominal.values()), model.ways)
    processes, place = model.placement.readers, model.placement.reader
    for first in range(0, len(unasked), size * processes):
        round_ = unasked[first : first + size * processes]
        own = round_[place * size : (place + 1) * size]
        kept = _kept_reading(model, logs, own, size, progress)
        new = _asked(model, source, own, size, reset, processes, kept, progress)
        for job in dict.fromkeys(job for job, _ in round_):
            known = len(logs[job].records)
            own_records = [record for one, record in new if one == job]
            logs[job].append(own_records if model.placement.tells else [])
            made = len(logs[job].records) - known
            progress.batch_done(job.stem, job.length, logs[job].records, made * nominal[job])
        if kept is not None:
            kept.forget()


def _kept_reading(
    model: Any,
    logs: Mapping[EvalJob, AnswerLog],
    own: Sequence[tuple[EvalJob, int]],
    size: int,
    progress: TokenProgress,
) -> KeptReading | None:
    """Where the memory of a batch is kept; None where nothing is, and where processes hold one
    memory together, of which none knows when the others stop."""
    together = model.placement.readers < jax.process_count()
    if not own or together or (log := logs[own[0][0]]).folder is None:
        return None
    file = log.folder / f"{own[0][0].stem}.{jax.process_index()}.npz"
    asked = [(job.stem, number) for job, number in own]
    return KeptReading(file, f"{log.key} {size} {asked}", progress.tokens_found)


def _asked(
    model: Any,
    source: Any,
    own: Sequence[tuple[EvalJob, int]],
    size: int,
    reset: bool,
    processes: int,
    kept: KeptReading | None,
    progress: TokenProgress,
) -> list[tuple[EvalJob, AnswerRecord]]:
    """The records of a batch of questions, each named by its job and its number."""
    start, jobs, questions = time.monotonic(), [], []
    for job, group in itertools.groupby(own, key=lambda one: one[0]):
        numbers = [number for _, number in group]
        which = range(numbers[0], numbers[-1] + 1)
        questions += source.ask(job.task, job.length, which, job.perturb)
        jobs += [job] * len(which)
    options = {
        "kept": kept,
        "max_new_tokens": [source.room(job.task, job.perturb) for job in jobs],
        "batch": size,
        "reset": reset,
        "on_tokens_read": lambda count: progress.add_tokens(count * processes),
    }
    encoded = [q.encoded for q in questions]
    if not jobs or jobs[0].decoding == "greedy":
        outputs, reset_outputs = answering.greedy_answers(model, encoded, **options)
    else:
        targets = [q.answer for q in questions]
        outputs, reset_outputs = answering.teacher_forced_answers(
            model, encoded, targets, **options
        )
    seconds = round((time.monotonic() - start) / max(1, len(questions)), 4)
    records = [
        AnswerRecord(
            question=q.question,
            target=q.target,
            output=outputs[k],
            reset_output=reset_outputs[k] if reset_outputs else None,
            depth=q.depth,
            tokens=len(q.encoded.context) + len(q.encoded.question),
            characters=q.characters,
            gpt2_tokens=q.gpt2_tokens,
            seconds=seconds,
            other_targets=q.other_targets,
            parts=q.parts,
            facts=len(q.facts),
        )
        for k, q in enumerate(questions)
    ]
    return list(zip(jobs, records, strict=True))


def batch_size(batch: int, samples: int, tokens: int, ways: int = 1) -> int:
    """`batch`, or the largest power of two below it that keeps the texts of `tokens` tokens within
    what the host holds: few sizes, so few compilations. More than one text is as many as `ways`
    devices divide, the next number up."""
    most = HOST_TOKENS if platform.current() == "cpu" else HOST_TOKENS_FOR_ACCELERATORS
    size = min(batch, samples)
    if size * tokens > most:
        size = max(1, most // max(1, tokens))
        size = 1 << (size.bit_length() - 1)
    return size if samples == 1 else answering.full_batch(size, ways)


def evaluation_fingerprint(model: Any, source: Any, seed: int, reset: bool) -> str:
    """Sixteen letters for all that answers depend on: weights, config, tokenizer, questions."""
    tokenizer = model.tokenizer.fingerprint()
    parts = (answering.model_fingerprint(model), source.describe(), seed, reset, tokenizer)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
