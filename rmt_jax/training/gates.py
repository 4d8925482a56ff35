"""Teaches the gates of a trained memory to stay shut over background.

Where each layer has its own, gates are taught as deep as they open over background, and so are the
layers below the deepest of these, which are held to what they said before. All else stays as it is,
bit for bit. Segments are read one at a time with an empty memory, so that a step takes a small part
of a training step. A gate that is one for all layers is fitted to what a layer says
(`gate_regression`), and nothing else changes.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmt_jax import cli, files, models
from rmt_jax.config import Data, GateTraining, to_dict
from rmt_jax.data.gate_labels import (
    BACKGROUND,
    FACT,
    LabelledSegments,
    labelled_segments,
)
from rmt_jax.errors import RmtError
from rmt_jax.runtime import startup
from rmt_jax.training.gate_regression import GateRegression, enter_segments
from rmt_jax.training.loop import save_weights

log = logging.getLogger(__name__)
LOGGED = 50  # steps between two lines of metrics.jsonl
MEASURED = 250  # steps between two measurements on validation texts


class GateError(RmtError):
    """A model whose gates cannot be taught; the message is a sentence for the user."""


def teach(
    model: Any,
    data: Data,
    gates: GateTraining,
    out: Path,
    *,
    dtype: str = "float32",
    threshold: float | None = None,
) -> None:
    """Teaches `model` (of `rmt_jax.load`) on texts as `data` says; writes what a run's folder holds
    to `out`, with `model.gate_threshold` of all layers if one is given. metrics.jsonl has gates
    over background and facts of the validation split. Segments are spread over the devices of the
    model's mesh; the processes of a cluster teach together, and the first one writes.

    Raises GateError for a memory without gates, or gates that are shut already.
    """
    if not model.memory_cell.has_gates:
        able = ", ".join(name for name in models.CELLS if models.CELLS[name].has_gates)
        raise GateError(
            f"The memory cell {model.config.model.cell!r} has no gates to teach: take {able}."
        )
    checked = labelled_segments(model.config, model.tokenizer, data, gates, "validation")
    count = gates.checked_segments // gates.batch
    meter = GateMeter(model, list(itertools.islice(checked, max(1, count))))
    before = meter.read(model.params)
    leaks = [
        number for number, leak in enumerate(before["background"], 1) if leak > gates.least_leak
    ]
    log.info("gates over 1,000 tokens of background: %s", _in_words(before["background"]))
    if not leaks:
        raise GateError(
            f"No layer's gates open over more than {gates.least_leak} of 1,000 tokens of"
            " background: there is nothing to teach."
        )
    if model.memory_cell.one_gate:
        log.info("fitting the gate of a token to %d batches of segments", gates.steps)
        trainer = GateRegression(model)
    else:
        layers = model.config.model.layers
        log.info("teaching the gates of %d of %d layers, %d steps", leaks[-1], layers, gates.steps)
        trainer = GateTrainer(model, leaks[-1], gates)
    owner, start, row = startup.owner(), time.monotonic(), before
    stream = labelled_segments(model.config, model.tokenizer, data, gates, "train")
    with cli.progress_bar(gates.steps, "step", shown=owner) as bar, contextlib.ExitStack() as stack:
        if owner:
            out.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(
            open(out / "metrics.jsonl" if owner else os.devnull, "w", encoding="utf-8")
        )
        file.write(json.dumps({"step": 0, **before}) + "\n")
        for step, batch in enumerate(itertools.islice(stream, gates.steps), 1):
            loss = trainer.step(batch)
            bar.update(1)
            if step % LOGGED and step != gates.steps:
                continue
            row = {"step": step, "seconds": round(time.monotonic() - start, 1), **loss}
            if step % MEASURED == 0 or step == gates.steps:
                row |= meter.read(trainer.params())
                log.info("step %d: over background %s", step, _in_words(row["background"]))
            file.write(json.dumps(row) + "\n")
            file.flush()
    config = model.config
    if threshold is not None:
        least = (threshold,) if threshold else ()
        config = config.replace(model=dataclasses.replace(config.model, gate_threshold=least))
    save_weights(out, trainer.params(), dtype)
    if owner:
        model.tokenizer.save(out / "tokenizer")
        files.write_text(out / "config.json", json.dumps(to_dict(config), indent=1))
    log.info("over facts: %s before, %s now", _in_words(before["fact"]), _in_words(row["fact"]))


def _in_words(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def gate_inputs(model: Any, params: Any, batch: LabelledSegments, depth: int):
    """`MemoryCell.gate_inputs` of these segments, with an empty memory."""
    whole, entered = enter_segments(model, params, batch)
    return whole.memory.gate_inputs(whole, *entered, depth)


class GateMeter:
    """How far the gates of every layer open over held-out segments."""

    def __init__(self, model: Any, batches: list[LabelledSegments]):
        self.model, self.batches = model, batches
        self._compiled = jax.jit(self._sums, out_shardings=model.placement.whole)

    def _sums(self, params: Any, batch: LabelledSegments):
        _, given = gate_inputs(self.model, params, batch, self.model.config.model.layers)
        opened = self.model.memory_cell.openings(given)
        kinds = [batch.label == kind for kind in (BACKGROUND, FACT)]
        return [((opened * one).sum(axis=(1, 2)), one.sum()) for one in kinds]

    def read(self, params: Any) -> dict[str, list[float]]:
        """Each layer's gates, added up over 1,000 tokens of background and of facts."""
        texts = self.model.placement.texts
        sums = [self._compiled(params, texts(batch)) for batch in self.batches]
        found = {}
        for kind, name in enumerate(("background", "fact")):
            opened = np.sum([np.asarray(one[kind][0], np.float64) for one in sums], axis=0)
            tokens = sum(int(one[kind][1]) for one in sums)
            found[name] = [round(1000 * float(value) / tokens, 4) for value in opened]
        return found


class GateTrainer:
    """The weights that are taught, those of the first `depth` layers' gates and of the blocks below
    the last of these, and the compiled step."""

    def __init__(self, model: Any, depth: int, gates: GateTraining):
        self.model, self.depth, self.gates = model, depth, gates
        warmup = min(gates.warmup, gates.steps // 2)
        rate = optax.warmup_cosine_decay_schedule(0, gates.learning_rate, warmup, gates.steps)
        self.optimizer = optax.adam(rate)
        self.names = model.memory_cell.gate_weights
        place = model.placement
        shapes = jax.eval_shape(self._of, model.params)
        held = place.beside_weights(shapes, shapes)
        self.taught = jax.jit(self._of, out_shardings=held)(model.params)
        # Facts and questions are read by later layers; padding by nobody.
        self.held = np.array([gates.hold_background, 1.0, 1.0, 0.0], np.float32)
        state = jax.eval_shape(self.optimizer.init, shapes)
        kept = place.beside_weights(state, shapes)
        self.state = jax.jit(self.optimizer.init, out_shardings=kept)(self.taught)
        self._compiled = jax.jit(self._update, out_shardings=(held, kept, place.whole))
        whole = place.beside_weights(model.params, model.params)
        self._whole = jax.jit(self._joined, out_shardings=whole)

    def params(self) -> Any:
        """All weights of the model, with those taught so far."""
        return self._whole(self.model.params, self.taught)

    def step(self, batch: LabelledSegments) -> dict[str, float]:
        """One step: cross entropy of the gates, and how far the layers below have moved."""
        self.taught, self.state, found = self._compiled(
            self.taught, self.state, self.model.params, self.model.placement.texts(batch)
        )
        return {name: float(value) for name, value in found.items()}

    def _of(self, params: Any) -> Any:
        """The taught layers of those weights that are taught, by the same names."""
        layers, blocks = params["memory"]["layers"], params["backbone"]["blocks"]
        return {
            "backbone": {"blocks": jax.tree.map(lambda a: a[: self.depth - 1], blocks)},
            "memory": {"layers": {name: layers[name][: self.depth] for name in self.names}},
        }

    def _joined(self, own: Any, taught: Any) -> Any:
        def put(whole, part):
            return whole.at[: len(part)].set(part)

        layers, new = own["memory"]["layers"], taught["memory"]["layers"]
        gates = {name: put(layers[name], new[name]) for name in self.names}
        blocks = jax.tree.map(put, own["backbone"]["blocks"], taught["backbone"]["blocks"])
        return {
            **own,
            "memory": {**own["memory"], "layers": {**layers, **gates}},
            "backbone": {**own["backbone"], "blocks": blocks},
        }

    def _update(self, taught: Any, state: Any, own: Any, batch: LabelledSegments):
        before = gate_inputs(self.model, own, batch, self.depth)
        gradient, found = jax.grad(self._loss, has_aux=True)(taught, own, batch, before)
        change, state = self.optimizer.update(gradient, state, taught)
        return optax.apply_updates(taught, change), state, found

    def _loss(self, taught: Any, own: Any, batch: LabelledSegments, before: Any):
        outputs, given = gate_inputs(self.model, self._joined(own, taught), batch, self.depth)
        price, held = batch.price, jnp.asarray(self.held)[batch.label]
        background, fact = batch.label == BACKGROUND, batch.label == FACT
        cross = 0.0
        for now, then in zip(given, before[1], strict=True):
            target = jnp.where(background, 0, jax.nn.sigmoid(then))
            errors = optax.sigmoid_binary_cross_entropy(now, target)
            opened, was = (jnp.clip(self.model.memory_cell.gate(x), 0, 1) for x in (now, then))
            counts = 1 + self.gates.price_open * background * jax.lax.stop_gradient(opened)
            counts += self.gates.price_was_open * fact * was
            cross += (errors * price * counts).sum() / price.sum()
        moved = 0.0
        for now, then in zip(outputs, before[0], strict=True):
            prompt = batch.prompt_mask[:, : now.shape[1] - held.shape[1]]  # none, without a prompt
            weight = jnp.concatenate([prompt.astype(held.dtype), held], axis=1)[..., None]
            now, then = now.astype(jnp.float32), then.astype(jnp.float32)
            moved += (jnp.square(now - then) * weight).sum() / (jnp.square(then) * weight).sum()
        return cross + self.gates.hold * moved, {"cross_entropy": cross, "moved": moved}
