"""The story of a run: mesh, data, model, step, checkpoint, loop, evaluation; nothing clever."""

import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rmt_jax import (
    api,
    evaluate,
    metrics,
    models,
    optimizer,
    report,
    sharding,
    startup,
    steps,
)
from rmt_jax.checkpoint import Checkpoints
from rmt_jax.config import Config, stage_value
from rmt_jax.data import tokenizer as tokenizers
from rmt_jax.data.loader import Loader
from rmt_jax.models import pretrained, weights
from rmt_jax.progress import Progress
from rmt_jax.shapes import Batch, Sums
from rmt_jax.workdir import Workdir

# What schedulers take for 'start me again' (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75
# Enough to see a plateau or a collapse; the final table uses evaluation.samples.
VALIDATION_BATCHES = 8


class Stopped(Exception):
    """The run was told to stop (SIGTERM); its state is saved."""


def run(config: Config, path: Path) -> int:
    """Trains, evaluates, reports; returns the exit code."""
    startup.prepare()
    workdir = Workdir(path)
    workdir.settle(config)
    mesh = sharding.make_mesh(config.mesh)
    print(f"{startup.describe()}; writing to {path}", file=sys.stderr)

    tokenizer = tokenizers.load(config.data.tokenizer)
    loader = Loader(config, tokenizer, "train")
    validation = Loader(config, tokenizer, "validation")

    tasks = len(config.data.tasks)
    rngs = nnx.Rngs(config.seed)
    model = models.build(config.model, config.prompt, tokenizer.vocab_size, tasks, rngs)
    static, params = models.split(model)
    if config.init:
        params = pretrained.initialise(params, config, config.init)
    opt = optimizer.build(config)
    state = steps.init_state(params, opt)
    place = sharding.place_state(state, params, mesh)
    state = jax.device_put(state, place)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"model: {config.model.cell}, {count:,} weights", file=sys.stderr)

    rows = tasks + 1
    train = Programs(
        steps.make_train_step(
            static,
            opt,
            rows,
            bptt=config.model.bptt,
            remat=config.model.remat,
            accumulate=config.optimizer.accumulate,
        ),
        donate_argnums=0,
        out_shardings=(place, None),
    )
    check = Programs(steps.make_eval_step(static, rows))

    tokenizer.save(path / "tokenizer")
    checkpoints = Checkpoints(path / "checkpoints", config.checkpoint)
    if checkpoints.steps():
        state = checkpoints.restore(state)
        print(f"continuing from step {int(state.step):,}", file=sys.stderr)
    try:
        state = Loop(config, mesh, train, check, checkpoints, path).run(state, loader, validation)
    except Stopped as stop:
        print(f"{stop}; the same command continues from there", file=sys.stderr)
        return REQUEUE
    finally:
        checkpoints.close()
    weights.save(path, state.params, config)
    finish(path)
    return 0


def finish(path: Path) -> None:
    """Evaluates the weights of a run on validation stories; writes and prints the results."""
    # Reloaded from the run's folder: what is measured is what a user will load.
    model = api.load(path)
    cells = evaluate.evaluate(model, out=path / "results")
    written = report.write(cells, path / "results", title=path.name, metrics=path / "metrics.jsonl")
    print(report.table(cells))
    print("\nwritten:")
    for file in (path / "weights.safetensors", *written):
        print(f"  {file}")
    print(
        "\nnext:"
        f"\n  python -m rmt_jax.ask --workdir {path} --file YOUR_TEXT.txt"
        f"\n  python -m rmt_jax.evaluate --workdir {path} --lengths 4k,16k --samples 100"
        f"\n  python -m rmt_jax.convert export --workdir {path} --out FOLDER"
    )


class Programs:
    """A function compiled ahead of time, once for each shape of batch; it knows its seconds."""

    def __init__(self, function, **options):
        self._jit = jax.jit(function, **options)
        self._programs: dict[tuple, jax.stages.Compiled] = {}
        self.seconds = 0.0

    def __call__(self, state, batch: Batch):
        key = tuple(x.shape for x in batch)
        if key not in self._programs:
            start = time.monotonic()
            self._programs[key] = self._jit.lower(state, batch).compile()
            self.seconds += time.monotonic() - start
        return self._programs[key](state, batch)


class Loop:
    """Steps through the curriculum: logs, validates, saves, and stops when told to."""

    def __init__(self, config: Config, mesh, train: Programs, check: Programs, checkpoints, path):
        self.config, self.mesh, self.train, self.check = config, mesh, train, check
        self.checkpoints, self.path = checkpoints, path
        self.stages = stages(config)
        self.told_to_stop = False

    def run(self, state: steps.TrainState, loader: Loader, validation: Loader) -> steps.TrainState:
        step, total = int(state.step), len(self.stages)
        spent = [loader.tokens_at(s) for s in range(total)]
        progress = Progress(self.path / "metrics.jsonl", sum(spent), sum(spent[:step]))
        rate = optimizer.schedule(self.config.curriculum, self.config.optimizer)
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_stop", True))
        window = Window(self.config)
        try:
            stream = loader.stream(step)
            while step < total:
                stage = self.stages[step]
                waited = time.monotonic()
                batch = sharding.put_batch(next(stream), self.mesh)
                window.waited += time.monotonic() - waited
                compiled = self.train.seconds
                state, sums = self.train(state, batch)
                window.compiled += self.train.seconds - compiled
                window.add(sums, spent[step])
                progress.advance(spent[step])
                step += 1
                ends = step == total or self.stages[step] != stage
                if step % self.config.log_every == 0 or ends:
                    record = {
                        "step": step,
                        "stage": stage + 1,
                        "segments": batch.tokens.shape[1],
                        "learning_rate": float(rate(step - 1)),
                    }
                    progress.log(record | window.close())
                every = self.config.evaluation.every
                scores = None
                if ends or (every and step % every == 0):
                    scores = self.validate(state, validation, step, stage, progress)
                    window = Window(self.config)  # its time is not the training's
                if ends or scores or step % self.config.checkpoint.every == 0 or self.told_to_stop:
                    self.checkpoints.save(state, scores)
                    # What `rmt_jax.load` reads: a run can be asked while it trains.
                    weights.save(self.path, state.params, self.config)
                if self.told_to_stop and step < total:
                    self.checkpoints.wait()
                    raise Stopped(f"told to stop: saved at step {step:,}")
        finally:
            signal.signal(signal.SIGTERM, previous)
            progress.close()
        self.checkpoints.wait()
        best = self.checkpoints.best()
        if best is not None and best != step and self.stages[best - 1] == self.stages[-1]:
            print(f"taking step {best:,}, the best on validation", file=sys.stderr)
            state = self.checkpoints.restore(state, best)
        return state

    def validate(self, state, validation: Loader, step: int, stage: int, progress) -> dict:
        """Teacher-forced accuracy on validation stories, at each length of the stage.

        The score for 'the best' puts a later stage first: its texts are longer.
        """
        tasks = self.config.data.tasks
        by_task: dict[str, dict[str, float]] = {task: {} for task in tasks}
        for segments in validation.stages[stage].buckets:
            sums = metrics.zeros(len(tasks) + 1)
            for batch in validation.evaluation_batches(segments, VALIDATION_BATCHES, stage=stage):
                batch = sharding.put_batch(batch, self.mesh)
                sums = metrics.add(sums, self.check(state.params, batch))
            for task, accuracy in metrics.means(sums, tasks)["accuracy"].items():
                by_task[task][f"{segments}s"] = round(accuracy, 4)
        progress.log({"step": step, "stage": stage + 1, "validation": by_task})
        shown = "  ".join(
            f"{task} " + "/".join(f"{100 * a:.0f}" for a in row.values())
            for task, row in by_task.items()
        )
        lengths = "/".join(f"{s}s" for s in validation.stages[stage].buckets)
        progress.say(f"step {step:,}, validation at {lengths}: {shown}")
        score = float(np.mean([a for row in by_task.values() for a in row.values()] or [0.0]))
        return {"score": stage + score, "accuracy": score}


class Window:
    """Sums between two log lines. Nothing is fetched from the device before the line is due."""

    def __init__(self, config: Config):
        self.tasks = config.data.tasks
        self.reset()

    def reset(self) -> None:
        self.sums = metrics.zeros(len(self.tasks) + 1)
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
        self.reset()
        return out


def stages(config: Config) -> list[int]:
    """The stage of every step."""
    c = config.curriculum
    return [s for s in range(len(c.segments)) for _ in range(int(stage_value(c.steps, s)))]
