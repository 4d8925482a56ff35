"""Teaches the gates of a trained delta memory to stay shut over background.

    python -m rmt_jax.gating --workdir RUN --out FOLDER --background BOOKS [--babi FOLDER]

Training tells gates by the answers alone, many segments later, or by how much background moves the
memory as a whole. But where the facts stand is known: the composer put them there. So each gate is
taught its own token: over background to be shut, over a fact to do what it did before. Segments are
read one at a time with an empty memory, so that a step takes a small part of a training step.

Gates are taught as deep as they open over background, and so are the layers below the deepest of
these, which are held to what they said before. All else stays as it is, bit for bit. Writes what a
run's folder holds, and metrics.jsonl: gates over background and facts of the validation split.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmt_jax import cli
from rmt_jax.config import Data, to_dict
from rmt_jax.files import write_text

BACKGROUND, FACT, ASKED, NOTHING = range(4)
BATCH = 64  # segments a step
SHUFFLED = 64  # texts whose segments are mixed
LEAK = 0.1  # gates over 1,000 tokens of background, above which a layer is taught
RATE, WARMUP = 1e-3, 20  # Adam's
HOLD = 3.0  # price of what moves in a layer, against a token's cross entropy
# Facts are few, and of some kinds fewer: at the price of background the gates of rare ones, under
# new names, were shut too. Questions in the text write little and are left nearly alone.
PRICE = np.array([1.0, 6.0, 0.3, 0.0], np.float32)
STORY = 80  # tokens of facts that a story counts for at least: QA4's two facts are 17
# Few tokens of background open a gate, and over a million tokens it is these that matter: one with
# an open gate counts for so many more; and one of a fact, if its gate was open before.
OPEN, WAS_OPEN = 400.0, 80.0
MADE = 0.5  # of the texts with hard negatives: those that are made
# Of what stands where, how much a layer is held to: facts and questions are read by later layers.
HELD = np.array([0.1, 1.0, 1.0, 0.0], np.float32)
CHECKED = 1600  # segments of the validation split
SEGMENTS = (2, 4, 8, 16)  # of a text
FACTS = (None, None, (3, 12), (2, 5))  # how many; None: as official stories have

log = logging.getLogger("rmt_jax.gating")  # not __name__, which may be __main__


class Labelled(NamedTuple):
    """Segments with what stands at each place."""

    tokens: np.ndarray  # i32[B, L]
    label: np.ndarray  # i8[B, L]  BACKGROUND | FACT | ASKED | NOTHING (padding)
    price: np.ndarray  # f32[B, L]  of an error there
    prompt: np.ndarray  # i32[B, P]
    prompt_mask: np.ndarray  # bool[B, P]


def main(argv: list[str]) -> int:
    parser = cli.Parser(
        prog="python -m rmt_jax.gating",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="any checkpoint rmt_jax.load takes, with a delta memory")
    add("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    add("--background", default="", help="builtin | a folder of books (default: the config's)")
    add("--babi", default="", help="folder of bAbI files: half of the stories are official ones")
    add("--steps", type=int, default=500, help=f"of {BATCH} segments (default: 500)")
    add("--threshold", type=float, help="written as model.gate_threshold when all is taught")
    add("--seed", type=int, default=0)
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise cli.Usage(f"--steps is {args.steps}: teaching takes at least 1.")
    if args.threshold is not None and not 0 <= args.threshold < 1:
        raise cli.Usage(f"--threshold is {args.threshold}: gates open from 0 to 1.")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise cli.Usage(f"--out {args.out} is no empty folder: choose another name.")
    # JAX loads only now: --help and wrong arguments answer at once.
    from rmt_jax import api

    model = api.load(args.workdir)
    if model.config.model.cell != "delta":
        raise cli.Usage(
            f"{args.workdir} has the memory {model.config.model.cell!r}, which has no gates: only "
            "delta has."
        )
    background = args.background or model.config.data.background
    if background == "none":
        raise cli.Usage("Gates are taught over background: --background FOLDER gives it one.")
    data = dataclasses.replace(
        model.config.data,
        background=background,
        hard_negative_rate=0.0
        if background == "builtin"
        else 0.8,  # the built-in text holds no such names
        facts="both" if args.babi else "simulated",
        babi_dir=args.babi,
        seed=args.seed,
    )
    run(model, data, args.out, args.steps, args.dtype, args.threshold)
    return 0


def run(
    model: Any,
    data: Data,
    out: Path,
    steps: int,
    dtype: str = "float32",
    threshold: float | None = None,
) -> None:
    """Teaches `model` (of `rmt_jax.load`) on what `data` says; writes `out`, with
    `model.gate_threshold` of all layers if one is given."""
    from rmt_jax.models.io import weights

    checked = itertools.islice(labelled(model, data, "validation"), CHECKED // BATCH)
    gauge = Gauge(model, list(checked))
    before = gauge.read(model.params)
    depth = max((n + 1 for n, one in enumerate(before["background"]) if one > LEAK), default=0)
    log.info("gates over 1,000 tokens of background: %s", _said(before["background"]))
    if not depth:
        raise cli.Usage(
            f"No layer's gates open over more than {LEAK} of 1,000 tokens of background: there is "
            "nothing to teach."
        )
    layers = model.config.model.layers
    log.info("teaching the gates of %d of %d layers, %d steps", depth, layers, steps)
    out.mkdir(parents=True, exist_ok=True)
    teaching, start = Teaching(model, depth, steps), time.monotonic()
    stream = itertools.islice(labelled(model, data, "train"), steps)
    bar = cli.progress_bar(steps, "step")
    with bar, open(out / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.write(json.dumps({"step": 0, **before}) + "\n")
        for step, batch in enumerate(stream, 1):
            loss = teaching.step(batch)
            bar.update()
            if step % 50 and step != steps:
                continue
            row = {"step": step, "seconds": round(time.monotonic() - start, 1), **loss}
            if step % 250 == 0 or step == steps:
                row |= gauge.read(teaching.params())
                log.info("step %d: over background %s", step, _said(row["background"]))
            file.write(json.dumps(row) + "\n")
            file.flush()
    config = model.config
    if threshold is not None:
        least = (threshold,) if threshold else ()
        config = config.replace(model=dataclasses.replace(config.model, gate_threshold=least))
    weights.save(out, teaching.params(), dtype)
    model.tokenizer.save(out / "tokenizer")
    write_text(out / "config.json", json.dumps(to_dict(config), indent=1))
    print(f"over facts: {_said(before['fact'])} before, {_said(row['fact'])} now")
    print(f"written: {out}\nnext:    python -m rmt_jax.evaluate --workdir {out} --lengths 1k,32k")


def _said(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def labelled(model: Any, data: Data, split: str) -> Iterator[Labelled]:
    """Batches without end of segments of texts of the model's tasks, cut as training cuts them:
    half with new names if training had any, `data.hard_negative_rate` of them hidden among
    hard negatives, found or made (`Composer.sample`), one in seven with no background at all. A
    pure function of `data`."""
    from rmt_jax.data.collate import collate
    from rmt_jax.data.compose import Composer
    from rmt_jax.data.rng import AddressedRng

    config, tokenizer, size = model.config, model.tokenizer, model.segment_tokens
    composer = Composer(data, tokenizer, split, segment_tokens=size)
    kept: list[tuple] = []
    for index in itertools.count():
        draw = AddressedRng(data.seed, index, 11)
        task = draw.pick(data.tasks)
        options = story_options(data, draw.pick(FACTS), draw.uniform() < 0.5)
        segments = draw.pick(SEGMENTS)
        hidden, negatives = draw.uniform() < 6 / 7, ""
        if draw.uniform() < data.hard_negative_rate:
            negatives = "made" if draw.uniform() < MADE else "found"
        share = draw.pick((0.0, 0.2, 0.5))
        address = (task, f"{segments}s", data.seed, index)
        made = composer.sample(
            *address, options, hidden=hidden, question_share=share, hard_negatives=negatives
        )
        text = collate(
            [made], tokenizer, segments=segments, segment_tokens=size,
            answer_room=composer.answer_room, tasks=composer.tasks,
            prompt=config.prompt, align=data.align,
        )  # fmt: skip
        what = np.full(text.tokens.shape, NOTHING, np.int8)
        label = labels(made, tokenizer)
        what[text.mask] = np.pad(label, (0, text.mask.sum() - len(label)), constant_values=ASKED)
        price = PRICE[what]
        price[what == FACT] *= max(1.0, STORY / (what == FACT).sum())
        for part in np.flatnonzero(text.mask[0].any(axis=1)):  # a short text's first ones are empty
            inside = (array[0, part] for array in (text.tokens, what, price))
            kept.append((*inside, text.prompt[0], text.prompt_mask[0]))
        if index % SHUFFLED < SHUFFLED - 1:
            continue
        order = AddressedRng(data.seed, index, 12).numpy.permutation(len(kept))
        whole = len(kept) // BATCH * BATCH
        for group in order[:whole].reshape(-1, BATCH):
            parts = zip(*(kept[i] for i in group), strict=True)
            yield Labelled(*(np.stack(part) for part in parts))
        kept = [kept[i] for i in order[whole:]]


def story_options(data: Data, facts: tuple[int, int] | None, renamed: bool) -> Any:
    """So many facts, each with a question; `renamed` counts if `data` has new names at all."""
    from rmt_jax.data.loader import NEW_NAMES
    from rmt_jax.data.story import StoryOptions

    return StoryOptions(facts, NEW_NAMES if renamed and data.new_names else (), question_rate=1.0)


def labels(made: Any, tokenizer: Any) -> np.ndarray:
    """What stands at each place of a sample's context, i8[n]."""
    from rmt_jax.data import segmentation

    label = np.full(len(made.context), BACKGROUND, np.int8)
    for start, stop in made.facts:
        label[start:stop] = FACT
    ends = segmentation.sentence_ends(made.context, tokenizer, "sentence")
    assert ends is not None
    ends = np.append(0, ends)
    for question in made.context_questions:
        start = ends[np.searchsorted(ends, question.answer_start, "right") - 1]
        label[start : question.answer_start + 1 + len(question.answer)] = ASKED
    return label


def openings(model: Any, params: Any, batch: Labelled, depth: int):
    """`Delta.gate_inputs` of these segments, with an empty memory."""
    from rmt_jax import models
    from rmt_jax.types import Prompt, Segment

    segment, prompt = Segment(batch.tokens, batch.label != NOTHING), None
    if model.config.prompt.source != "none":
        task = np.zeros(len(batch.tokens), np.int32)
        prompt = Prompt(batch.prompt, batch.prompt_mask, task)
    whole = models.merge(model.graph, params)
    memory = whole.initial(len(batch.tokens))
    return whole.memory.gate_inputs(whole, memory, segment, prompt, depth)  # pyright: ignore


class Gauge:
    """How far the gates of every layer open over held-out segments."""

    def __init__(self, model: Any, batches: list[Labelled]):
        import jax

        self.model, self.batches = model, batches
        self._compiled = jax.jit(self._sums)

    def _sums(self, params: Any, batch: Labelled):
        _, given = openings(self.model, params, batch, self.model.config.model.layers)
        opened = self.model.memory_cell.openings(given)
        kinds = [batch.label == kind for kind in (BACKGROUND, FACT)]
        return [((opened * one).sum(axis=(1, 2)), one.sum()) for one in kinds]

    def read(self, params: Any) -> dict[str, list[float]]:
        """Each layer's gates, added up over 1,000 tokens of background and of facts."""
        sums = [self._compiled(params, batch) for batch in self.batches]
        found = {}
        for kind, name in enumerate(("background", "fact")):
            opened = np.sum([np.asarray(one[kind][0], np.float64) for one in sums], axis=0)
            tokens = sum(int(one[kind][1]) for one in sums)
            found[name] = [round(1000 * float(value) / tokens, 4) for value in opened]
        return found


class Teaching:
    """The weights that are taught, those of the first `depth` layers' gates and of the blocks below
    the last of these, and the compiled step."""

    def __init__(self, model: Any, depth: int, steps: int):
        import jax
        import optax

        self.model, self.depth = model, depth
        rate = optax.warmup_cosine_decay_schedule(0, RATE, min(WARMUP, steps // 2), steps)
        self.optimizer = optax.adam(rate)
        own = model.params
        self.taught = {
            "blocks": jax.tree.map(lambda a: a[: depth - 1], own["backbone"]["blocks"]),
            "beta": own["memory"]["layers"]["beta"][:depth],
            "beta_bias": own["memory"]["layers"]["beta_bias"][:depth],
        }
        self.state = self.optimizer.init(self.taught)
        self._compiled = jax.jit(self._update)

    def params(self) -> Any:
        """All weights of the model, with those taught so far."""
        return self._joined(self.model.params, self.taught)

    def step(self, batch: Labelled) -> dict[str, float]:
        """One step: cross entropy of the gates, and how far the layers below have moved."""
        self.taught, self.state, found = self._compiled(
            self.taught, self.state, self.model.params, batch
        )
        return {name: float(value) for name, value in found.items()}

    def _joined(self, own: Any, taught: Any) -> Any:
        import jax

        def put(whole, part):
            return whole.at[: len(part)].set(part)

        layers = own["memory"]["layers"]
        gates = {n: put(layers[n], taught[n]) for n in ("beta", "beta_bias")}
        blocks = jax.tree.map(put, own["backbone"]["blocks"], taught["blocks"])
        return {
            **own,
            "memory": {**own["memory"], "layers": {**layers, **gates}},
            "backbone": {**own["backbone"], "blocks": blocks},
        }

    def _update(self, taught: Any, state: Any, own: Any, batch: Labelled):
        import jax
        import optax

        before = openings(self.model, own, batch, self.depth)
        gradient, found = jax.grad(self._loss, has_aux=True)(taught, own, batch, before)
        change, state = self.optimizer.update(gradient, state, taught)
        return optax.apply_updates(taught, change), state, found

    def _loss(self, taught: Any, own: Any, batch: Labelled, before: Any):
        import jax
        import jax.numpy as jnp
        import optax

        from rmt_jax.models.cells import delta

        reached, given = openings(self.model, self._joined(own, taught), batch, self.depth)
        price, held = batch.price, jnp.asarray(HELD)[batch.label]
        background, fact = batch.label == BACKGROUND, batch.label == FACT
        cross = 0.0
        for now, then in zip(given, before[1], strict=True):
            target = jnp.where(background, 0, jax.nn.sigmoid(then))
            errors = optax.sigmoid_binary_cross_entropy(now, target)
            opened, was = (jnp.clip(delta.gate(x), 0, 1) for x in (now, then))
            counts = 1 + OPEN * background * jax.lax.stop_gradient(opened) + WAS_OPEN * fact * was
            cross += (errors * price * counts).sum() / price.sum()
        moved = 0.0
        for now, then in zip(reached, before[0], strict=True):
            told = batch.prompt_mask[:, : now.shape[1] - held.shape[1]]  # none, without a prompt
            weight = jnp.concatenate([told.astype(held.dtype), held], axis=1)[..., None]
            now, then = now.astype(jnp.float32), then.astype(jnp.float32)
            moved += (jnp.square(now - then) * weight).sum() / (jnp.square(then) * weight).sum()
        return cross + HOLD * moved, {"cross_entropy": cross, "moved": moved}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
