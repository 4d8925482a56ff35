"""The loop through the curriculum: steps, log lines, validations, checkpoints."""

import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.cli import progress_bar
from rmt_jax.config import Config
from rmt_jax.data import tasks as registry
from rmt_jax.data.loader import Loader
from rmt_jax.models import costs
from rmt_jax.models.io import weights
from rmt_jax.runtime import hardware, startup
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime.preemption import Signals, Stopped
from rmt_jax.training import metrics, optimizer
from rmt_jax.training import step as steps
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.divergence import Diverged, Watch, batches
from rmt_jax.training.progress import Progress
from rmt_jax.training.trackers import Tracker
from rmt_jax.types import Batch, Sums

# Enough to see a plateau or a collapse; the final table uses evaluation.samples.
VALIDATION_QUESTIONS = 512
log = logging.getLogger(__name__)


class Programs:
    """A function compiled ahead of time, once for each shape of batch; it knows its seconds."""

    def __init__(self, function, **options):
        self._jit = jax.jit(function, **options)
        self._programs: dict[tuple, jax.stages.Compiled] = {}
        self.seconds = 0.0

    def __call__(self, state, batch: Batch):
        return self.compiled(state, batch)(state, batch)

    def compiled(self, state, batch: Batch) -> jax.stages.Compiled:
        """The program for the shapes of a batch; made at the first call."""
        key = shapes(batch)
        if key not in self._programs:
            start = time.monotonic()
            self._programs[key] = self._jit.lower(state, batch).compile()
            self.seconds += time.monotonic() - start
        return self._programs[key]


def shapes(batch: Batch) -> tuple:
    """What a program is compiled for."""
    return tuple(x.shape for x in jax.tree.leaves(batch))


class Loop:
    """Steps through the curriculum: logs, validates, saves, and stops when told to.

    Raises `Stopped`, with everything saved, and `Diverged`."""

    def __init__(
        self,
        config: Config,
        mesh,
        train: Programs,
        check: Programs,
        checkpoints: Checkpoints,
        path: Path,
        signals: Signals,
        scale: float = 1.0,
    ):
        self.config, self.mesh, self.train, self.check = config, mesh, train, check
        self.checkpoints, self.path, self.signals = checkpoints, path, signals
        self.stages = stages(config)
        self.rate = optimizer.schedule(config.stages, config.optimizer, scale)
        self.trackers: list[Tracker] = []
        self.profiled: tuple[int, int] = (0, 0)
        self.ahead = 0.0  # seconds that `compile` took

    def compile(self, state: steps.TrainState, loader: Loader, validation: Loader) -> None:
        """Compiles the steps and validations still to come, side by side, and refuses to start what
        will not fit later (ConfigError)."""
        hosts, size = jax.process_count(), self.config.evaluation.batch
        firsts: dict[tuple[int, int], int] = {}
        every = sum(len(stage.buckets) for stage in self.config.stages if stage.steps)
        for step in range(int(state.step), len(self.stages)):
            if len(firsts) == every:
                break
            firsts.setdefault((self.stages[step], loader.segments_at(step)), step)
        wanted: dict[tuple, Callable[[], jax.stages.Compiled]] = {}
        for step in sorted(firsts.values(), key=loader.tokens_at, reverse=True):
            rows = loader.batch_at(step, jax.process_index(), hosts)
            batch = sharding.put_batch(rows, self.mesh)
            wanted.setdefault((0, shapes(batch)), partial(self.train.compiled, state, batch))
        for stage in sorted({stage for stage, _ in firsts}):
            for segments in validation.stages[stage].buckets:
                # None where no task has documents of that length.
                for rows in validation.evaluation_batches(segments, 1, size, stage=stage):
                    batch = sharding.put_whole_batch(rows, self.mesh)
                    check = partial(self.check.compiled, state.params, batch)
                    wanted.setdefault((1, shapes(batch)), check)
        # Hosts tune kernels together: all must compile in one order.
        tasks = list(wanted.values())[: None if hosts == 1 else 1]
        start, cores = time.monotonic(), os.cpu_count() or 1
        # The compiler holds no lock of Python's. Of a CPU it takes a core and a half a program, and
        # the next one is traced meanwhile.
        workers = cores if jax.devices()[0].platform != "cpu" else max(2, cores // 2)
        bar = progress_bar(
            len(tasks),
            "program",
            shown=startup.owner(),
            leave=False,
            desc="compiling",
            bar_format="{desc} {n_fmt} of {total_fmt} programs [{elapsed}]",
        )
        with bar, ThreadPoolExecutor(workers) as pool:
            programs = []
            for program in pool.map(lambda task: task(), tasks):
                programs.append(program)
                bar.update()
        if programs:  # the largest step first
            hardware.fits(programs[0], jax.local_devices()[0], self.config)
        self.train.seconds, self.ahead = 0.0, time.monotonic() - start
        if startup.owner():
            log.info("%s programs compiled in %.0f s", len(programs), self.ahead)

    def run(self, state: steps.TrainState, loader: Loader, validation: Loader) -> steps.TrainState:
        step, total = int(state.step), len(self.stages)
        spent = [loader.tokens_at(s) for s in range(total)]
        progress = Progress(
            self.path / "metrics.jsonl",
            sum(spent),
            sum(spent[:step]),
            startup.owner(),
            self.trackers,
        )
        window, watch, tracing = Window(self.config), Watch(step), False
        try:
            if step and self.validates(step) and not self.checkpoints.validated(step):
                # Stopped before or during this validation: without it the best is not known.
                scores = self.validate(state, validation, step, progress)
                self.checkpoints.save(state, scores)
            stream = batches(loader.stream, step, progress.say)
            while step < total:
                stage = self.stages[step]
                waited = time.monotonic()
                batch = sharding.put_batch(next(stream), self.mesh)
                window.waited += time.monotonic() - waited
                compiled = self.train.seconds
                first, last = self.profiled
                if not tracing and first <= step + 1 <= last:
                    jax.profiler.start_trace(str(self.path / "profile"))
                    tracing = True
                state, sums = self.train(state, batch)
                if tracing and step + 1 in (last, total):
                    jax.block_until_ready(sums)
                    jax.profiler.stop_trace()
                    tracing = False
                    progress.say(f"profile up to step {step + 1:,}: {self.path / 'profile'}")
                window.compiled += self.train.seconds - compiled
                window.add(sums, spent[step])
                progress.advance(spent[step])
                step += 1
                saves = self.validates(step) or step % self.config.checkpoint.every == 0
                stops = self.signals.stop_at(step)
                if step % self.config.log_every == 0 or saves or stops:
                    record = {
                        "step": step,
                        "stage": stage + 1,
                        "segments": self.config.stages[stage].segments,
                        "learning_rate": float(np.asarray(self.rate(step - 1))),
                    }
                    means = window.close()
                    means["compile_seconds"] += round(self.ahead, 2)
                    self.ahead = 0.0
                    progress.log(record | means)
                    watch.see(step, stage, means["loss"])  # before anything is saved
                scores = None
                if self.validates(step) and not stops:
                    scores = self.validate(state, validation, step, progress)
                    window = Window(self.config)  # its time is not the training's
                    stops = self.signals.noted
                if stops or (saves and not watch.suspicious):
                    if not finite(state.params):  # the loss of this step came before its update
                        reason = "weights are not finite after its update"
                        raise Diverged(step, step - 1, reason)
                    self.checkpoints.save(state, scores)
                    # A run can be asked while it trains.
                    save_weights(self.path, state.params)
                if stops and step < total:
                    self.checkpoints.wait()
                    raise Stopped(f"told to stop: saved at step {step:,}")
        finally:
            if tracing:
                jax.profiler.stop_trace()
            progress.close()
        self.checkpoints.wait()
        best = self.checkpoints.best()
        if best is not None and best != step and self.stages[best - 1] == self.stages[-1]:
            log.info("taking step %s, the best on validation", f"{best:,}")
            state = self.checkpoints.restore(state, best)
        return state

    def validates(self, step: int) -> bool:
        """At the end of a stage, and every `evaluation.every` steps."""
        every = self.config.evaluation.every
        ends = step == len(self.stages) or self.stages[step] != self.stages[step - 1]
        return ends or bool(every and step % every == 0)

    def validate(self, state, validation: Loader, step: int, progress: Progress) -> dict | None:
        """Teacher-forced accuracy on validation stories, and nats per token of texts to model, at
        each length of the stage; None where SIGTERM came between.

        The score for 'the best' is the mean of accuracies, and of a token's mean probability. It
        puts a later stage first: its texts are longer.
        """
        tasks, stage = self.config.data.tasks, self.stages[step - 1]
        told = registry.language_tasks(self.config.data)
        by_task: dict[str, dict[str, float]] = {task: {} for task in tasks}
        size = self.config.evaluation.batch
        most = min(VALIDATION_QUESTIONS, self.config.evaluation.samples * len(tasks))
        for segments in validation.stages[stage].buckets:
            sums = metrics.zeros(len(tasks) + 1, bool(told))
            for batch in validation.evaluation_batches(
                segments, -(-most // size), size, stage=stage
            ):
                if self.signals.noted:
                    return None
                batch = sharding.put_whole_batch(batch, self.mesh)
                sums = metrics.add(sums, self.check(state.params, batch))
            means = metrics.means(sums, tasks)
            for task, value in (means["accuracy"] | means.get("nats_per_token", {})).items():
                by_task[task][f"{segments}s"] = round(value, 4)
        asked = {task: row for task, row in by_task.items() if task not in told}
        nats = {task: by_task[task] for task in told}
        record = {"step": step, "stage": stage + 1, "validation": asked}
        progress.log(record | ({"validation_nats": nats} if told else {}))
        shown = "  ".join(
            [f"{t} " + "/".join(f"{100 * a:.0f}" for a in row.values()) for t, row in asked.items()]
            + [f"{t} " + "/".join(f"{a:.3f}" for a in row.values()) for t, row in nats.items()]
        )
        lengths = "/".join(f"{s}s" for s in validation.stages[stage].buckets)
        progress.say(
            f"step {step:,}, validation at {lengths}: {shown}{' (nats per token)' if told else ''}"
        )
        values = [a for row in asked.values() for a in row.values()]
        values += [math.exp(-a) for row in nats.values() for a in row.values()]
        score = float(np.mean(values or [0.0]))
        return {"score": stage + score, "accuracy": score}


class Window:
    """Sums between two log lines. Nothing is fetched from the device before the line is due."""

    def __init__(self, config: Config):
        self.tasks = config.data.tasks
        self.language = bool(registry.language_tasks(config.data))
        peak = hardware.peak(jax.devices()[0])
        # Fraction of the peak that one token a second makes; None where the peak is not known.
        self.unit = peak and costs.train_flops(config) / (peak * jax.device_count())
        self.reset()

    def reset(self) -> None:
        self.sums = metrics.zeros(len(self.tasks) + 1, self.language)
        self.tokens, self.waited, self.compiled = 0, 0.0, 0.0
        self.start = time.monotonic()

    def add(self, sums: Sums, tokens: int) -> None:
        self.sums = metrics.add(self.sums, sums)
        self.tokens += tokens

    def close(self) -> dict[str, float]:
        means = metrics.means(self.sums, self.tasks)  # waits for the device
        seconds = time.monotonic() - self.start - self.compiled
        out = means | {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "data_wait_fraction": round(self.waited / seconds, 4),
            "compile_seconds": round(self.compiled, 2),
        }
        if self.unit:
            out["mfu"] = round(self.unit * self.tokens / seconds, 4)
        self.reset()
        return out


def stages(config: Config) -> list[int]:
    """The stage of every step."""
    return [number for number, stage in enumerate(config.stages) for _ in range(stage.steps)]


@jax.jit
def finite(params) -> jax.Array:
    """Is there no infinity and no not-a-number in any weight? bool[]"""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


def save_weights(path: Path, params, dtype: str = "float32") -> None:
    """What `rmt_jax.load` reads, written by one process; all of them must call it. Weights come to
    the host some rows at a time, and to no device whole."""
    rows = {name: sharding.blocks(value) for name, value in weights.flatten(params).items()}
    try:
        if startup.owner():
            weights.save(path, params, dtype, lambda name, value: rows[name])
    finally:
        # The other processes wait for one whose disk is full.
        for name in sorted(rows) if jax.process_count() > 1 else ():
            for _ in rows[name]:
                pass
