"""The story of a run: mesh, data, model, step, checkpoint, loop, evaluation; nothing clever."""

import logging
from pathlib import Path

import jax

from rmt_jax import api, evaluation, models, report
from rmt_jax.config import Config
from rmt_jax.data import tasks
from rmt_jax.data import tokenizer as tokenizers
from rmt_jax.data.lengths import Length
from rmt_jax.data.loader import Loader
from rmt_jax.evaluation import perplexity
from rmt_jax.models.io import shapes as source
from rmt_jax.models.io.folder import argument
from rmt_jax.report import curves, language
from rmt_jax.results import PerplexityResult
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime import peers, startup
from rmt_jax.runtime.preemption import Signals, Stopped
from rmt_jax.runtime.workdir import Workdir, config_to_continue, new_folder
from rmt_jax.training import optimizer, programs, step
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.divergence import Diverged, Rescues
from rmt_jax.training.loop import Loop, Programs, save_weights
from rmt_jax.training.start import Start
from rmt_jax.training.trackers import PLAIN, Looks, open_trackers

log = logging.getLogger(__name__)


def run(config: Config, path: Path | None, looks: Looks = PLAIN) -> int:
    """Trains, evaluates, reports; returns the exit code. Without a `path` it makes a folder."""
    looks.profiled()
    known = config_to_continue(path)
    config = source.settle(config, known)
    models.check(config.model, config.prompt)
    startup.one_device_a_core(config)
    startup.prepare()
    path = path or new_folder()
    with peers.noticed(), Signals() as signals, Workdir(path, startup.owner()) as workdir:
        # A continued run needs nothing of what it started from.
        own = known is not None and known.init == config.init and config.data.tokenizer == "init"
        tokenizer = tokenizers.load(path / "tokenizer" if own else config.tokenizer)
        config = tasks.resolve(config, tokenizer)
        workdir.settle(config)
        try:
            return _run(config, tokenizer, path, signals, looks)
        except Stopped as stop:
            log.warning("%s; the same command continues from there", stop)
            return signals.code


def _run(
    config: Config, tokenizer: tokenizers.Tokenizer, path: Path, signals: Signals, looks: Looks
) -> int:
    owner = startup.owner()
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batches(config, mesh)
    log.info("%s; writing to %s", startup.describe(), path)

    loader = Loader(config, tokenizer, "train")
    validation = Loader(config, tokenizer, "validation")
    if owner:
        for line in loader.describe():
            log.info("%s", line)

    count = len(config.data.tasks)
    start = Start(config, tokenizer.vocab_size, count)
    static, shapes, infos = start.outline[:3]
    optimizer.check_trained(config, infos)
    trains = config.optimizer.trains
    rescues = Rescues(path, owner)
    log.info("model: %s, %s", config.model.cell, _counts(shapes, trains))

    check = step.make_eval_step(static, programs.metric_rows(config), mesh)
    check = Programs(check, out_shardings=sharding.replicated(mesh))
    if owner:
        tokenizer.save(path / "tokenizer")
    checkpoints = Checkpoints(path / "checkpoints", config.checkpoint)
    trackers = open_trackers(looks.log_to, path, config) if owner else []
    state = None
    while state is None:  # again from the last good checkpoint, if training goes wrong
        opt = optimizer.build(config, infos, rescues.scale)
        start.lay_out(opt, mesh)
        train = Programs(
            programs.train_step(config, static, opt, mesh),
            donate_argnums=0,
            out_shardings=(start.place, sharding.replicated(mesh)),
        )
        try:
            if checkpoints.steps():  # a continued run needs nothing of its init
                begun = checkpoints.restore(start.like)
                log.info("continuing from step %s", f"{int(begun.step):,}")
            else:
                begun = start.first()
            loop = Loop(config, mesh, train, check, checkpoints, path, signals, rescues.scale)
            loop.trackers, loop.profiled = trackers, looks.profiled()
            loop.compile(begun, loader, validation)
            state = loop.run(begun, loader, validation)
        except Diverged as trouble:
            log.warning("%s", rescues.add(trouble))
            checkpoints.drop_after(trouble.good)
        except BaseException as error:
            peers.end_if_gone(error)
            checkpoints.close()  # what is being written shall be whole
            raise
    checkpoints.close()
    for tracker in trackers:
        tracker.close()
    save_weights(path, state.params)
    sharding.exchange(b"")  # the weights are there for all
    signals.now_at_once()
    finish(path)
    return 0


def _counts(params, trains) -> str:
    """'135,071,808 weights, of which 556,800 are trained'."""
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(part)) for part in step.divide(params, trains)
    )
    text = f"{trained + frozen:,} weights"
    return f"{text}, of which {trained:,} are trained" if frozen else text


def finish(path: Path) -> None:
    """Evaluates the weights of a run on validation stories and texts; writes and prints the
    results. The processes of a cluster share the questions; the first one writes."""
    # Reloaded from the run's folder: what is measured is what a user will load.
    model = api.load(path, everywhere=True)
    asked, folder = tasks.question_tasks(model.config.data), path / "results"
    run = argument(path)
    own = set(asked) <= set(model.config.data.questions)
    question = "YOUR QUESTION" if own else "Where is Mary?"
    told = [name for name in model.config.data.tasks if name in model.config.data.texts]

    written, following, owner = [], [], startup.owner()
    results = evaluation.evaluate(model, out=folder) if asked else []
    if asked and owner:
        written += report.write(results, folder, title=path.name, metrics=path / "metrics.jsonl")
        print(report.table(results))
        following += [
            f"ask --workdir {run} --file YOUR_TEXT.txt --question '{question}'",
            f"evaluate --workdir {run} --lengths 4k,16k --samples 100",
        ]
    elif owner:
        written += curves.learning_curves(
            path / "metrics.jsonl", folder / "curves.png", title=path.name
        )
    for name in told:
        own_folder = folder if len(told) == 1 else folder / name
        result = measure_texts(model, name, own_folder)
        if owner:
            print(language.table(result))
            written += language.write(result, own_folder)
        following.append(f"evaluate --workdir {run} --perplexity --data {name} --split test")
    if not owner:
        return
    print("\nwritten:")
    for file in (path / "weights.safetensors", *written):
        print(f"  {file}")
    print("\nnext:")
    for command in (*following, f"convert export --workdir {run} --out FOLDER"):
        print(f"  python -m rmt_jax.{command}")


def measure_texts(model: api.Model, name: str, folder: Path) -> PerplexityResult:
    """How well validation texts of an entry of `data.texts` are predicted: as many as questions are
    asked, each up to the longest length that is evaluated."""
    about = model.config.evaluation
    lengths = [Length.parse(length, model.segment_tokens).tokens for length in about.lengths]
    return perplexity.measure(
        model,
        perplexity.open_texts(model, name),
        samples=about.samples,
        tokens=max(*lengths, model.segment_tokens) + 1,
        out=folder,
    )
