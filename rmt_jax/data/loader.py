"""Batches as a function of the step: mixture, curriculum, buckets, hosts.

`batch_at(step)` depends on the config and the step alone, so a resumed run, or one on another
number of hosts, sees the same data. Shapes are static in a bucket: a batch has 1, 2, 4, ... or all
segments of its stage, and so few programs are compiled.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rmt_jax.config import Config, ConfigError, Facts, Stage
from rmt_jax.data import tasks
from rmt_jax.data.collate import collate
from rmt_jax.data.compose import Composer, Sample
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import OFFICIAL, Passage, StoryOptions
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.types import Batch

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
        self.stages = config.stages
        steps = [stage.steps for stage in self.stages]
        self._ends = np.cumsum(steps)
        rows = np.array([stage.batch for stage in self.stages]) * steps
        self._first = np.concatenate([[0], np.cumsum(rows)])  # number of a stage's first sample

    @property
    def steps(self) -> int:
        return int(self._ends[-1])

    def stage_at(self, step: int) -> int:
        """The number of the stage that a step belongs to."""
        return min(int(np.searchsorted(self._ends, step, "right")), len(self.stages) - 1)

    def segments_at(self, step: int) -> int:
        """S of the batch of a step."""
        stage = self.stages[self.stage_at(step)]
        return AddressedRng(self.config.data.seed, step, 2).pick(stage.buckets)

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
        samples = [self._sample(stage, segments, index) for index in rows]
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

    def _sample(self, stage: Stage, segments: int, index: int) -> Sample | Passage:
        data = self.config.data
        rng = AddressedRng(data.seed, index, 3)
        task = rng.weighted(*_mixture(self.config, stage))
        address = (task, f"{segments}s", data.seed, index)
        if self.composer.tasks[task].models_language:
            return self.composer.passage(*address)
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
            two_persons_below=two_persons_below,
            final_question_only=known,
        )
        negatives = "found" if rng.uniform() < data.hard_negative_rate else ""
        return self.composer.sample(
            *address, options, hidden=hidden, question_share=share, hard_negatives=negatives
        )

    def evaluation_batches(
        self, segments: int, count: int, batch: int = 64, stage: int | None = None
    ) -> Iterator[Batch]:
        """`count` batches of texts of exactly `segments` segments with one question at the end,
        tasks in turn. With a `stage`, its facts and its share of background; otherwise official
        numbers of facts, all hidden."""
        data, chosen = self.config.data, None if stage is None else self.stages[stage]
        seed = self.config.evaluation.seed
        for number in range(count):
            samples = []
            for index in range(number * batch, (number + 1) * batch):
                task = data.tasks[index % len(data.tasks)]
                address = (task, f"{segments}s", seed, index)
                if self.composer.tasks[task].models_language:
                    samples.append(self.composer.passage(*address))
                    continue
                hidden, options = True, OFFICIAL
                if chosen is not None:
                    rng = AddressedRng(seed, index, 4)
                    hidden = rng.uniform() < chosen.background
                    options = StoryOptions(_range(rng.pick(chosen.facts)))
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
