"""See inside: what memory does while one text is read.

`inspect` reads one sample segment by segment and draws how much each memory token (of RMT and PRMT;
each layer's associations, of ARMT and delta) changes, where the facts stood, and what the write
memory looked at (of delta: which tokens opened their gates). It runs the same cell on the same
weights, one segment at a time, with attention laid open.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax import models
from rmt_jax.evaluation import answering
from rmt_jax.models.cells import layerwise
from rmt_jax.models.ops import attention
from rmt_jax.report import figures
from rmt_jax.types import Prompt, Segment


class Trace(NamedTuple):
    """One text, S segments."""

    change: np.ndarray  # f32[S, rows]  relative change of each memory token (ARMT: of each layer)
    # f32[S, M, L]  attention of the write memory to the text, mean over layers and heads; of delta
    # f32[S, layers, L]  how far each token opens its gate
    looks: np.ndarray
    tokens: np.ndarray  # i32[S, L]
    mask: np.ndarray  # bool[S, L]
    bounds: np.ndarray  # i64[S + 1]  segment k holds the context from bounds[k] to bounds[k + 1]
    kind: str  # what a row of `change` is
    gated: bool  # `looks` are gates


def trace(model: Any, asked: answering.Asked) -> Trace:
    """Reads a context and its question as training does, keeping what happened."""
    size = model.segment_tokens
    place = answering.aligned(model, [asked], 1)[0]
    total = place.segments + 1
    tokens, mask = np.zeros((total, size), np.int32), np.zeros((total, size), bool)
    answering.cut(asked.context, place, 0, tokens[:-1], mask[:-1])
    last, known = answering.tails(model, [asked], [place])
    tokens[-1], mask[-1] = last[0], known[0]

    prompt = answering.prompts(model, [asked])
    told = None if model.config.prompt.source == "none" else prompt
    step = jax.jit(lambda params, *args: opened(models.merge(model.graph, params), *args))
    memory, changes, looks = model.initial_memory(1), [], []
    for s in range(total):
        segment = Segment(tokens[s : s + 1], mask[s : s + 1])
        new, look = step(model.params, memory, segment, told)
        changes.append(change(memory.state, new.state))
        looks.append(np.asarray(look))
        memory = new
    kind = "layer's associations" if hasattr(memory.state, "matrix") else "memory token"
    gated = model.config.model.cell == "delta"
    return Trace(np.stack(changes), np.stack(looks), tokens, mask, place.bounds, kind, gated)


def spans(seen: Trace, facts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where facts of the context stand among the S * L places that were read."""

    def place(token: int) -> int:
        segment = int(np.searchsorted(seen.bounds[1:], token, "right"))
        return segment * seen.mask.shape[1] + token - int(seen.bounds[segment])

    return [(place(start), place(stop - 1) + 1) for start, stop in facts]


def opened(cell: Any, memory: Any, segment: Segment, prompt: Prompt | None) -> tuple[Any, Any]:
    """One step of the cell and, beside the new memory, `Trace.looks` of this segment (no rows for a
    cell without either)."""
    new = cell.step(memory, segment, prompt)[1]
    layers = jax.tree.leaves(cell.layer_weights())[0].shape[0]
    if isinstance(cell, layerwise.Delta):
        _, given = cell.openings(memory, segment, prompt, layers)
        return new, jnp.where(segment.mask, layerwise.opened(cell.thresholds, given)[:, 0], 0)
    x, view = cell.enter(memory, segment, prompt)
    weights, states = cell.layer_weights(), cell._layer_state(memory)
    length, looks = segment.tokens.shape[1], []
    for layer in range(layers):
        own, state = jax.tree.map(lambda a, n=layer: a[n], (weights, states))
        if view.writes:
            looks.append(_look(cell, own, x, state, view)[:, :, -view.writes :])
        x, _, _ = cell.layer(own, x, state, memory.started, view)
    if not looks:
        return new, jnp.zeros((0, length))
    stop = x.shape[1] - view.writes
    mean = jnp.stack(looks).mean(axis=(0, 1, 2))  # layers, batch of one, heads
    return new, mean[:, stop - length : stop]


def _look(cell: Any, weights: Any, x: jax.Array, state: Any, view: Any) -> jax.Array:
    """Attention weights f32[B, H, N, N] of one layer: the block's own queries and keys, with the
    identity for values."""
    module = cell._layer_module(weights)
    block = module["block"]
    x = cell._before(module, x, state, view)
    batch, places, width = x.shape
    _, looked, _ = block.look(x, view, None)
    qkv = block.qkv(looked).reshape(batch, places, 3, block.heads, width // block.heads)
    queries, keys = qkv[:, :, 0], qkv[:, :, 1]
    if block.rotary:
        queries = attention.rotate(queries, view.positions)
        keys = attention.rotate(keys, view.positions)
    eye = jnp.eye(places, dtype=jnp.float32)[None, :, None, :]
    values = jnp.broadcast_to(eye, (batch, places, block.heads, places))
    weights = attention.attend(queries, keys, values, view.visible, view.bias)
    return jnp.swapaxes(weights, 1, 2)


def change(old: Any, new: Any) -> np.ndarray:
    """‖new - old‖ / ‖old‖ of each row: f32[M] of RMT [1, M, D] and, mean over layers, of PRMT
    [layers, 1, M, D]; f32[layers] of ARMT's matrices."""
    if hasattr(new, "matrix"):
        a, b = (np.asarray(x.matrix).reshape(x.matrix.shape[0], -1) for x in (old, new))
    elif not jax.tree.leaves(new):
        return np.zeros(1, np.float32)
    else:
        a, b = np.asarray(old), np.asarray(new)
        a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    size = np.linalg.norm(a, axis=-1)
    # An association starts at zero: the first write counts as a full change.
    out = np.linalg.norm(b - a, axis=-1) / np.where(
        size > 0, size, np.linalg.norm(b, axis=-1) + 1e-9
    )
    return out if hasattr(new, "matrix") else out.mean(axis=0)


def inspect(
    model: Any, source: Any, tasks: Sequence[str], lengths: Sequence[str], out: Path
) -> list[Path]:
    """Pictures and numbers (.json) of the first question of each task at the last of `lengths`."""
    length = (list(lengths) or list(model.config.evaluation.lengths))[-1]
    paths = []
    for task in tasks or model.config.data.tasks:
        question = source.ask(task, length, range(1))[0]
        seen = trace(model, question.asked)
        said = answering.answer(model, [question.asked], room=source.room(task), batch=1)[0][0]
        stem = out / f"{task}_{length}"
        title = f"{task.upper()} at {length}: {question.question} {question.target}"
        title += f" (answered: {said or 'nothing'})"
        paths += draw(model, question, seen, stem, title)
        numbers = {
            "question": question.question,
            "target": question.target,
            "answer": said,
            "facts": question.facts,
            "supporting": question.supporting,
            "change": seen.change.round(5).tolist(),
        }
        stem.with_suffix(".json").write_text(json.dumps(numbers), encoding="utf-8")
        paths.append(stem.with_suffix(".json"))
    return paths


def draw(model: Any, question: Any, seen: Trace, stem: Path, title: str) -> list[Path]:
    """Three panels: change of memory, then attention (of delta: gates) over the whole text and
    where the last supporting fact stands, with the words."""
    segments, size = seen.mask.shape
    rows = seen.change.shape[1]
    words = seen.looks.shape[1] > 0
    height = 2.2 + 0.11 * rows + (4.2 if words else 0)
    figure, grid = figures.canvas(9.0, min(height, 11), 3 if words else 1, 1)
    plots = list(grid) if words else [grid]
    # The first segment replaces the learned start altogether; the scale is that of the others, up
    # to a change as large as what was there.
    top = min(float(seen.change[1:].max()), 1.0) if segments > 1 else None
    image = plots[0].imshow(
        seen.change.T, aspect="auto", cmap="BuPu", vmin=0, vmax=top, interpolation="nearest",
        extent=(0, segments, rows - 0.5, -0.5),
    )  # fmt: skip
    plots[0].xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=plots[0], pad=0.01, label="relative change", aspect=12, extend="max")
    plots[0].set_ylabel(seen.kind, fontsize=9)
    plots[0].yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(textwrap.fill(title, 88), fontweight="bold", x=0.01, ha="left")
    plots[0].set_title("change of memory at each segment", pad=16)
    for k, (start, stop) in enumerate(spans(seen, question.facts)):
        supports = k in question.supporting
        colour = "#D55E00" if supports else figures.GREY
        plots[0].plot(
            [start / size, stop / size], [-0.5 - 0.035 * rows] * 2, color=colour,
            lw=5 if supports else 3, clip_on=False, solid_capstyle="butt",
        )  # fmt: skip
    plots[0].set_xlabel(
        "segment (bars above: facts; orange: those that the answer rests on)", fontsize=9
    )
    if words:
        shown = _attention(plots[1], plots[2], model, question, seen)
        figure.colorbar(
            shown,
            ax=plots[2],
            pad=0.01,
            label="gate, %" if seen.gated else "attention, %",
            aspect=12,
        )
    return figures.save(figure, stem.with_suffix(".png"), pdf=True)


def _attention(whole: Any, part: Any, model: Any, question: Any, seen: Trace) -> Any:
    segments, size = seen.mask.shape
    places, key = spans(seen, question.facts), list(question.supporting)
    flat = seen.looks.mean(axis=1).reshape(-1)
    at = np.arange(len(flat)) / size
    if len(flat) > 4000:  # too many for a picture: the highest of each stretch
        step = -(-len(flat) // 2000)
        flat = np.pad(flat, (0, -len(flat) % step)).reshape(-1, step).max(axis=1)
        at = np.arange(len(flat)) * step / size
    whole.fill_between(at, 100 * flat, color=figures.COLOURS[0], alpha=0.85, lw=0)
    for k, (start, stop) in enumerate(places):
        colour = "#D55E00" if k in key else figures.GREY
        whole.axvspan(start / size, stop / size, color=colour, alpha=0.18, lw=0)
    whole.set_xlim(0, segments)
    whole.xaxis.get_major_locator().set_params(integer=True)
    whole.set_ylim(bottom=0)
    whole.set_title(
        "write gate of each token (mean over layers), %"
        if seen.gated
        else "attention of the write memory to each token (mean), %"
    )
    whole.set_xlabel("segment", fontsize=9)

    last = max((places[k][0] for k in key), default=0)
    s = min(last // size, segments - 1)
    first = max(0, min(last - s * size - 12, size - 48))
    shown = range(first, min(first + 48, size))
    labels = [
        model.tokenizer.decode([int(seen.tokens[s, n])]) if seen.mask[s, n] else "" for n in shown
    ]
    image = part.imshow(
        100 * seen.looks[s][:, first : first + len(labels)], aspect="auto", cmap="BuPu",
        vmin=0, interpolation="nearest",
    )  # fmt: skip
    part.set_xticks(range(len(labels)), [w.strip() or "·" for w in labels], rotation=90, fontsize=7)
    for tick, n in zip(part.get_xticklabels(), shown, strict=True):
        if any(places[k][0] <= s * size + n < places[k][1] for k in key):
            tick.set_color("#D55E00")
            tick.set_fontweight("bold")
    part.set_ylabel("layer" if seen.gated else "write token", fontsize=9)
    part.yaxis.get_major_locator().set_params(integer=True)
    part.set_title(f"segment {s}, where the last supporting fact stands")
    return image
