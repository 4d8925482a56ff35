"""Batches as a function of the step: mixture, curriculum, buckets, hosts.

`batch_at(step)` depends on the config and the step alone, so a resumed run, or one on another
number of hosts, sees the same data. Shapes are static in a bucket: a batch has 1, 2, 4, ... or all
segments of its stage, and so few programs are compiled.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence

import numpy as np

from rmt_jax.config import Config, ConfigError, Facts, Stage
from rmt_jax.data import prompts, tasks
from rmt_jax.data.collate import collate
from rmt_jax.data.compose import Composer, Sample
from rmt_jax.data.lengths import Length
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import OFFICIAL, Passage, StoryOptions
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.errors import RmtError
from rmt_jax.types import Batch

TRIED = 50  # samples of a task whose prompts are looked at
NEW_NAMES = ("people", "places", "objects")
SHORT = 7  # facts
PROBE = 18  # tokens of the longest question and of ANSWER
TOKENS_PER_QUESTION = 16  # about what a fact, its question and answer take; beyond Q none counts


class Loader:
    """Batches of one split.

    `batch_at(step)` is a pure function. `stream(step)` prefetches them in the background with
    Grain, this host's rows only. Raises ConfigError or DataError for settings without samples.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, split: str = "train"):
        tasks.check(config)
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self.composer = Composer(
            config.data, tokenizer, split, segment_tokens=config.model.segment_tokens
        )
        self.composer.open()
        self._check_prompts()
        self.stages = config.stages
        self._shares: list[np.ndarray | None] = [None] * len(self.stages)
        if split == "train":
            self._shares = [self._bucket_shares(number) for number in range(len(self.stages))]
        steps = [stage.steps for stage in self.stages]
        self._ends = np.cumsum(steps)
        rows = np.array([stage.batch for stage in self.stages]) * steps
        self._first = np.concatenate([[0], np.cumsum(rows)])  # number of a stage's first sample

    def _check_prompts(self) -> None:
        """Raises DataError for a task prompt that is too long, before anything is trained: of every
        task, and with a question in it of the longest row, or of the first samples."""
        prompt, options = self.config.prompt, StoryOptions(tokenizer=self.tokenizer)
        for task in self.composer.tasks.values():
            questions = [""]
            if prompt.source in ("question", "both") and not task.models_language:
                sizes = task.sizes(self.split, self.tokenizer)
                longest = range(TRIED) if sizes is None else sizes[:, 1].argsort()[-1:].tolist()
                with contextlib.suppress(RmtError):  # of a task without enough samples
                    made = (task.sample(self.split, 0, row, options) for row in longest)
                    questions += [getattr(sample, "question", "") for sample in made]
            for question in questions:
                prompts.ids(prompt, self.tokenizer, task.description, question)

    @property
    def steps(self) -> int:
        return int(self._ends[-1])

    def stage_at(self, step: int) -> int:
        """The number of the stage that a step belongs to."""
        return min(int(np.searchsorted(self._ends, step, "right")), len(self.stages) - 1)

    def segments_at(self, step: int) -> int:
        """S of the batch of a step."""
        number = self.stage_at(step)
        stage, shares = self.stages[number], self._shares[number]
        rng = AddressedRng(self.config.data.seed, step, 2)
        if shares is None:
            return rng.pick(stage.buckets)
        return rng.weighted(stage.buckets, shares.sum(axis=0).tolist())

    def describe(self) -> Iterator[str]:
        """What there is to say about the data before training, in sentences."""
        for name, task in self.composer.tasks.items():
            yield from task.describe(self.tokenizer)
            if self.composer.finite.own_lengths(name):
                longest = self.config.longest_segments
                count = int((self.composer.finite.segments(name) > longest).sum())
                if count:
                    does = {
                        "cut_end": "are cut at their end",
                        "cut_beginning": "are cut at their beginning",
                        "leave_out": "are left out",
                    }[task.longer]
                    yield (
                        f"{name}: {count:,} {self.split} rows take more than {longest} segments,"
                        f" the longest of training, and {does}."
                    )

    def _length(self, stage: Stage, segments: int) -> Length:
        """The texts of a bucket. Documents that are longer than any stage are cut in the last."""
        shorter = [b for b in stage.buckets if b < segments]
        size = self.config.model.segment_tokens
        return Length(
            f"{segments}s",
            segments * size,
            True,
            above=max(shorter, default=0) * size,
            cut=segments == self.config.longest_segments,
        )

    def _document_length(self, task: str, length: Length) -> Length:
        """The same, without what the task leaves out."""
        return length._replace(cut=length.cut and self.composer.tasks[task].longer != "leave_out")

    def _bucket_shares(self, number: int) -> np.ndarray | None:
        """Of the samples of a stage, the share of each task in each bucket, f64[tasks, buckets]:
        documents are drawn alike often, whatever their lengths. None where no task has documents
        of lengths of their own: then buckets are drawn evenly.

        Raises ConfigError for a task none of whose documents is short enough."""
        stage = self.stages[number]
        names, weights = _mixture(self.config, stage)
        if not stage.steps or not any(map(self.composer.finite.own_lengths, names)):
            return None
        shares = np.zeros((len(names), len(stage.buckets)))
        for row, (name, weight) in enumerate(zip(names, weights, strict=True)):
            found = np.full(len(stage.buckets), 1 / len(stage.buckets))
            if self.composer.finite.own_lengths(name) and weight:
                lengths = [self._length(stage, segments) for segments in stage.buckets]
                chosen = (self._rows(name, length) for length in lengths)
                found = np.array([len(rows) for rows in chosen], float)
                if not found.sum():
                    least = int(self.composer.finite.segments(name).min())
                    raise ConfigError(
                        f"stages.{number} has texts of up to {stage.segments} segments of"
                        f" {self.config.model.segment_tokens} tokens, but the shortest of the"
                        f" {self.split} rows of '{name}' takes {least}: raise"
                        f" config.stages.{number}.segments, or let longer ones be cut"
                        f" (config.data.questions.{name}.longer)."
                    )
                found /= found.sum()
            shares[row] = weight * found
        return shares / sum(weights)

    def _rows(self, task: str, length: Length) -> np.ndarray:
        rows = self.composer.finite.rows(task, self._document_length(task, length))
        assert rows is not None
        return rows

    def tokens_at(self, step: int) -> int:
        """B * S * L of the batch of a step, without making it."""
        stage, length = self.stages[self.stage_at(step)], self.config.model.segment_tokens
        return stage.batch * self.segments_at(step) * length

    def batch_at(self, step: int, host: int = 0, hosts: int = 1) -> Batch:
        """The batch of a step, or the rows of one of several hosts (equal shares, in order)."""
        number = self.stage_at(step)
        stage = self.stages[number]
        if stage.batch % hosts:
            raise ConfigError(
                f"{stage.batch} texts per batch cannot be shared by {hosts} hosts equally: make"
                f" config.stages.{number}.batch a multiple of the number of hosts."
            )
        begin = int(self._ends[number - 1]) if number else 0
        first = int(self._first[number]) + (step - begin) * stage.batch
        share = stage.batch // hosts
        rows = range(first + host * share, first + (host + 1) * share)
        segments = self.segments_at(step)
        samples = [self._sample(number, segments, index) for index in rows]
        answered = segments if stage.dense or stage.probes else 1
        questions = 1
        if stage.dense:
            questions = max(2, self.config.model.segment_tokens // TOKENS_PER_QUESTION)
        probe = PROBE + self.composer.answer_room if stage.probes and segments > 1 else 0
        mark = self.config.optimizer.memory_drift_penalty > 0 and answered > 1
        return self.collate(samples, segments, answered, questions, probe, mark)

    def collate(
        self,
        samples: Sequence[Sample | Passage],
        segments: int,
        answered: int = 1,
        questions: int = 1,
        probe_tokens: int = 0,
        mark_background_only: bool = False,
    ) -> Batch:
        """Samples of this loader's composer as a `Batch`."""
        return collate(
            samples,
            self.tokenizer,
            segments=segments,
            segment_tokens=self.config.model.segment_tokens,
            answer_room=self.composer.answer_room,
            answered_segments=answered,
            questions=questions,
            tasks=self.composer.tasks,
            prompt=self.config.prompt,
            align=self.config.data.align,
            probe_tokens=probe_tokens,
            mark_background_only=mark_background_only,
        )

    def _sample(self, number: int, segments: int, index: int) -> Sample | Passage:
        data, stage, shares = self.config.data, self.stages[number], self._shares[number]
        rng = AddressedRng(data.seed, index, 3)
        names, weights = _mixture(self.config, stage)
        if shares is not None:
            weights = shares[:, stage.buckets.index(segments)].tolist()
        task = rng.weighted(names, weights)
        if self.composer.tasks[task].models_language:
            return self.composer.passage(task, f"{segments}s", data.seed, index)
        hidden = rng.uniform() < stage.background
        rate = rng.pick(stage.question_rates)
        names = NEW_NAMES if rng.uniform() < data.new_names else ()
        # Two persons in half of the short stories: with four, a short story seldom comes back to
        # anybody, and 'the last place mentioned' would be right too often.
        facts = _range(rng.pick(stage.facts))
        two_persons_below = SHORT if facts and rng.uniform() < 0.5 else 0
        known = stage.probes or self.config.prompt.source in ("question", "both")
        rate, share = (1.0, rate) if stage.probes else (rate, 1.0)  # probes need every answer
        options = StoryOptions(
            facts,
            names,
            question_rate=rate,
            last_questions=0 if known else stage.last_questions,
            two_persons_below=two_persons_below,
            final_question_only=known,
        )
        negatives = "found" if rng.uniform() < data.hard_negative_rate else ""
        if data.unknown_rate and rng.uniform() < data.unknown_rate:
            options = options._replace(unknown=True)
        length = Length.parse(f"{segments}s", self.config.model.segment_tokens)
        if self.composer.finite.rows(task, length) is not None:  # drawn with replacement
            length = self._document_length(task, self._length(stage, segments))
            index = AddressedRng(data.seed, index, 5).below(1 << 40)
        address = (task, length, data.seed, index)
        return self.composer.sample(
            *address, options, hidden=hidden, question_share=share, hard_negatives=negatives
        )

    def evaluation_batches(
        self, segments: int, count: int, batch: int = 64, stage: int | None = None
    ) -> Iterator[Batch]:
        """`count` batches of texts of exactly `segments` segments with one question at the end,
        tasks in turn. With a `stage`, its facts and its share of background; otherwise official
        numbers of facts, all hidden. A task without documents of that length is left out."""
        data, chosen = self.config.data, None if stage is None else self.stages[stage]
        seed = self.config.evaluation.seed
        longest = Stage(segments, steps=0, batch=batch, learning_rate=0)
        lengths = {name: self._length(chosen or longest, segments) for name in data.tasks}
        lengths = {name: self._document_length(name, one) for name, one in lengths.items()}
        rows = {name: self.composer.finite.rows(name, length) for name, length in lengths.items()}
        empty = {name for name, found in rows.items() if found is not None and not len(found)}
        names = [name for name in data.tasks if name not in empty]
        if not names:
            return
        for number in range(count):
            samples = []
            for index in range(number * batch, (number + 1) * batch):
                task = names[index % len(names)]
                if self.composer.tasks[task].models_language:
                    samples.append(self.composer.passage(task, lengths[task], seed, index))
                    continue
                hidden, options = True, OFFICIAL
                if chosen is not None:
                    rng = AddressedRng(seed, index, 4)
                    hidden = rng.uniform() < chosen.background
                    options = StoryOptions(_range(rng.pick(chosen.facts)))
                finite = rows[task] is not None
                place = index // len(names) if finite else index
                address = (task, lengths[task], seed, place)
                sample = self.composer.sample(*address, options, hidden=hidden)
                samples.append(sample)
            yield self.collate(samples, segments)

    def batches(self, stage: int, count: int) -> Iterator[Batch]:
        """`count` batches at the longest length of a stage, its facts and background, one question
        at the end."""
        chosen = self.stages[stage]
        return self.evaluation_batches(chosen.segments, count, stage=stage)

    def stream(
        self, start: int = 0, host: int | None = None, hosts: int | None = None
    ) -> Iterator[Batch]:
        """`batch_at(start)`, `batch_at(start + 1)`, ... to the last step: this host's rows, made
        ahead of time by Grain in a thread, or in `config.data.workers` processes."""
        import grain.python as grain

        if host is None or hosts is None:
            import jax

            host, hosts = jax.process_index(), jax.process_count()
        steps = grain.MapDataset.range(start, max(start + 1, self.steps))
        made = steps.map(_Make(self, host, hosts))
        ahead = made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
        if self.config.data.workers:
            _parse_flags()
            workers = grain.MultiprocessingOptions(num_workers=self.config.data.workers)
            ahead = ahead.mp_prefetch(workers)
        batches = iter(ahead)
        try:
            yield from batches
        finally:  # Grain's threads and processes must not outlive the run
            batches.close()


class _Make:
    """`batch_at` as a transformation that worker processes can unpickle."""

    def __init__(self, loader: Loader, host: int, hosts: int):
        self.loader, self.host, self.hosts = loader, host, hosts

    def __setstate__(self, state: dict) -> None:
        """In a worker process: the run is told to stop, and ends its workers when it has saved."""
        vars(self).update(state)
        if multiprocessing.parent_process() is not None:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, signal.SIG_IGN)

    def __call__(self, step: int) -> Batch:
        return self.loader.batch_at(int(step), self.host, self.hosts)


def _parse_flags() -> None:
    """Grain's worker processes want absl's flags parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _mixture(config: Config, stage: Stage) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Tasks of a stage and their shares."""
    if stage.tasks:
        return tuple(stage.tasks), tuple(stage.tasks.values())
    names = config.data.tasks
    return names, config.data.weights or (1.0,) * len(names)


def _range(facts: Facts | None) -> tuple[int, int] | None:
    return None if facts is None else (facts.least, facts.most)
