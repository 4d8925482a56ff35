"""How well a model predicts texts, with its memory and with the memory reset before each segment.

Texts are read side by side in blocks of segments; what is kept of a text are sums over bins of
places. The same program measures both; a text of any length takes the same memory.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmt_jax.cli import progress_bar, restart_clock
from rmt_jax.config import Texts
from rmt_jax.data import segmentation, tasks
from rmt_jax.data.corpus import documents, texts
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import answering, sources
from rmt_jax.evaluation.answer_log import AnswerLog
from rmt_jax.evaluation.answering import BLOCK, EncodedQuestion
from rmt_jax.models import language
from rmt_jax.results import PerplexityResult, TextBin, TextSums, ratio_error
from rmt_jax.runtime import startup, switches

SINGLE = 16  # segments that have a bin each, and positions that share one; further ones double


class PerplexityError(RmtError):
    """Texts that cannot be measured; the message is a sentence for the user."""


@dataclass(frozen=True)
class Reading:
    """Texts, and what the model is told about them."""

    name: str
    texts: texts.Documents
    description: str  # the task prompt
    task_index: int = 0  # of the learned prompts


@dataclass(frozen=True)
class TextRecord:
    """One text that was read: a line of the log."""

    number: int  # among the texts
    name: str
    # View -> rows of (bin, tokens, bytes, nats, nats with the memory reset or null)
    views: dict[str, list[list[Any]]] = field(default_factory=dict)


def open_texts(model: Any, data: str, split: str = "") -> Reading:
    """The texts that `--data` names: an entry of the config's `data.texts` ('' where there is one
    alone), of which the validation split, or another, is read; else a folder or file, which is read
    whole or in part, as `split` says. Raises PerplexityError, DataError."""
    settings, prompt = model.config.data, model.config.prompt
    known = tasks.language_tasks(settings)
    entries = dict(settings.texts)
    if not data and len(known) != 1:
        raise PerplexityError(
            f"Which texts? This model was trained on {', '.join(known)}: choose one with --data."
            if known
            else "Which texts? This model was trained on none: give a folder of .txt or .jsonl"
            " files, or one such file, with --data."
        )
    name = data or known[0]
    # A model that was told what to do with texts is told the same of any.
    told = name if name in entries else next(iter(known), "")
    index = 0
    if prompt.source == "learned":
        if told not in settings.tasks:
            raise PerplexityError(
                f"This model has learned prompts for {', '.join(settings.tasks)}, none of which is"
                " to model a language: there is no prompt to read these texts with."
            )
        index = settings.tasks.index(told)
    section = entries.get(told, Texts())
    if name in entries:
        split = split or "validation"
        found = texts.load(section, split, model.tokenizer, name)
        return Reading(f"{name}, {split} split", found, section.description, index)
    wanted = (split,) if split else documents.SPLITS
    found = texts.read(name, model.tokenizer, section.field, wanted, field="--data")
    if not len(found):
        raise PerplexityError(f"The {split} split of {name} has no text: leave --split out.")
    shown = f"{Path(name).name}, {split} split" if split else Path(name).name
    return Reading(shown, found, section.description, index)


@switches.neutral()
def measure(
    model: Any,
    reading: Reading,
    *,
    samples: int = 0,
    tokens: int = 0,
    batch: int = 0,
    reset: bool = True,
    out: Path | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """Reads the texts with `model`, an `rmt_jax.api.Model`.

    Args:
      samples: texts, the first ones; 0: all.
      tokens: of each text at most; 0: all.
      batch: texts read side by side; 0: as the model's config says.
      reset: also measure the control, if the model has a memory.
      out: keep what was measured there, text by text, and measure none twice.
      progress: show a bar on standard error.

    Raises PerplexityError.
    """
    count = min(samples or len(reading.texts), len(reading.texts))
    most = tokens or int(reading.texts.lengths.max())
    size = min(batch or model.config.evaluation.batch, count)
    size = size if count == 1 else answering.full_batch(size, model.ways)
    if most < texts.LEAST:
        raise PerplexityError(f"--tokens is {tokens}: a text needs {texts.LEAST}.")
    lengths = np.minimum(reading.texts.lengths[:count], most)
    order = np.argsort(-lengths, kind="stable")  # alike ones together, the longest first
    reset = reset and bool(jax.tree.leaves(model.initial_memory(1).state))
    ids = sources.prompt_ids(model.config.prompt, model.tokenizer, reading.description, "")
    key = _fingerprint(model, reading, (most, size, reset, ids.tolist(), reading.task_index))
    folder = None if out is None else out / "answers"
    if folder is not None and startup.owner():
        folder.mkdir(parents=True, exist_ok=True)
    log = AnswerLog(folder, "perplexity", key, TextRecord)
    empty = np.zeros(0, np.int32)
    asked = EncodedQuestion(empty, empty, ids, reading.task_index)
    prompt = answering.prompts(model, [asked] * size)
    shown, ours, told = progress and startup.owner(), model.placement.reader, model.placement.tells
    round_of = size * model.placement.readers  # texts of which each process reads some
    with progress_bar(int(lengths.sum()), "tok", shown=shown, unit_scale=True, smoothing=0) as bar:
        for first in range(0, count, round_of):
            if first == round_of:
                restart_clock(bar)
            known = {record.number for record in log.records}
            numbers: list[int] = order[first : first + round_of].tolist()
            if known >= set(numbers):
                bar.update(int(lengths[numbers].sum()))
                continue
            # Of a group all are read again: the same program.
            group = numbers[ours * size : (ours + 1) * size]
            found = [reading.texts.text(number)[:most] for number in group]
            sums = _read(model, found, size, prompt, reset, bar)
            records = [
                TextRecord(number, reading.texts.name(number), one.rows())
                for number, one in zip(group, sums, strict=True)
            ]
            log.append([record for record in records if told and record.number not in known])
    done = {record.number: record for record in log.records}
    return _result(model, reading.name, [done[number] for number in range(count)])


def segments(
    text: np.ndarray, size: int, align: str, tokenizer: Any, block: int
) -> Iterator[np.ndarray]:
    """Bounds i64[n + 1] of the segments of a text, as in training (`segmentation.passage_bounds`),
    at most `block` of them at a time."""
    total, start = len(text), 0
    first = total % size if align == "right" else 0
    if first:
        yield np.array([0, first])
        start = first
    while start < total:
        part = min(total - start, block * size + 1)
        ends = segmentation.sentence_ends(np.asarray(text[start : start + part]), tokenizer, align)
        bounds = segmentation.settled_bounds(part, size, ends)
        if start + part == total and bounds[-1] < part:
            bounds = np.append(bounds, part)
        bounds = bounds[: block + 1]
        yield start + bounds
        start += int(bounds[-1])


def _read(
    model: Any, found: Sequence[np.ndarray], size: int, prompt: Any, reset: bool, bar: Any
) -> list["_Sums"]:
    """Sums of texts that are read side by side; places of the batch that are left stay empty."""
    length, tokenizer, align = model.segment_tokens, model.tokenizer, model.config.data.align
    cuts = [segments(text[:-1], length, align, tokenizer, BLOCK) for text in found]
    sums = [_Sums(tokenizer.token_bytes, reset) for _ in found]
    memories = {way: model.initial_memory(size) for way in ((False, True) if reset else (False,))}
    while True:
        bounds = [next(cut, None) for cut in cuts]
        if all(one is None for one in bounds):
            return sums
        tokens = np.zeros((size, BLOCK, length), np.int32)
        mask, following = np.zeros(tokens.shape, bool), np.full(tokens.shape, -1, np.int32)
        for b, (text, cut) in enumerate(zip(found, bounds, strict=True)):
            for k, (start, stop) in enumerate(_pairs(cut)):
                tokens[b, k, : stop - start] = text[start:stop]
                mask[b, k, : stop - start] = True
                following[b, k, : stop - start] = text[start + 1 : stop + 1]
        count = max(len(one) - 1 for one in bounds if one is not None)
        nats = {}
        for way, memory in memories.items():
            memories[way], made = _program(model)(
                model.params, memory, tokens, mask, following, prompt, np.int32(count), way
            )
            nats[way] = np.asarray(made, np.float64)
        for b, cut in enumerate(bounds):
            if cut is not None:
                known = mask[b]
                sums[b].add(cut, following[b][known], *(made[b][known] for made in nats.values()))
        bar.update(int(mask.sum()))


def _pairs(bounds: np.ndarray | None) -> Iterator[tuple[int, int]]:
    if bounds is not None:
        yield from zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)


@functools.lru_cache(maxsize=1)
def _program(model: Any) -> Any:
    """`language.read_nats` of this model, compiled once for each number of texts side by side."""

    def run(module, memory, tokens, mask, following, prompt, count, reset):
        prompt = None if model.config.prompt.source == "none" else prompt
        return language.read_nats(module, memory, tokens, mask, following, prompt, count, reset)

    return model.compiled(run)


class _Sums:
    """Sums over bins of one text, view by view."""

    def __init__(self, token_bytes: np.ndarray, reset: bool):
        self._bytes, self._kinds = token_bytes, 4 if reset else 3
        self._segment = 0  # the next one
        self._views: dict[str, np.ndarray] = {}

    def add(self, bounds: np.ndarray, predicted: np.ndarray, *nats: np.ndarray) -> None:
        """The tokens that segments with these bounds predict, and their nats each way."""
        sizes = np.diff(bounds)
        place = np.arange(bounds[0], bounds[-1])
        segment = np.repeat(self._segment + np.arange(len(sizes)), sizes)
        values = [np.ones(len(place)), self._bytes[predicted].astype(float), *nats]
        for view, at in (
            ("position", place + 1),
            ("segment", segment),
            ("place", place - np.repeat(bounds[:-1], sizes)),
        ):
            which = _bins(view, at)
            found = np.stack([np.bincount(which, value) for value in values], axis=1)
            held = self._views.get(view, np.zeros((0, self._kinds)))
            if len(held) < len(found):
                held = np.pad(held, ((0, len(found) - len(held)), (0, 0)))
            held[: len(found)] += found
            self._views[view] = held
        self._segment += len(sizes)

    def rows(self) -> dict[str, list[list[Any]]]:
        """`TextRecord.views`."""
        return {
            view: [
                [number, int(row[0]), int(row[1]), row[2], row[3] if self._kinds == 4 else None]
                for number, row in enumerate(found.tolist())
                if row[0]
            ]
            for view, found in self._views.items()
        }


def _bins(view: str, at: np.ndarray) -> np.ndarray:
    """The bin of each place: powers of two; of positions the first few are one bin, of segments
    each of the first few is its own."""
    power = np.frexp(np.maximum(at, 1))[1] - 1  # exact, as a logarithm is not
    few = SINGLE.bit_length() - 1
    if view == "position":
        return np.maximum(power - few + 1, 0)
    if view == "place":
        return np.where(at > 0, power + 1, 0)
    return np.where(at < SINGLE, at, SINGLE + power - few)


def _range(view: str, number: int) -> tuple[int, int]:
    """The first place of a bin, and that behind its last."""
    few = SINGLE.bit_length() - 1
    if view == "segment" and number < SINGLE or view == "place" and number == 0:
        return number, number + 1
    if view == "position" and number == 0:
        return 1, SINGLE
    power = {"position": number + few - 1, "place": number - 1, "segment": number - SINGLE + few}
    return 1 << power[view], 2 << power[view]


def _result(model: Any, name: str, records: Sequence[TextRecord]) -> PerplexityResult:
    held: dict[tuple[str, int], list[TextSums]] = {}
    for record in records:
        for view, rows in record.views.items():
            for number, *sums in rows:
                held.setdefault((view, number), []).append(TextSums(*sums))
    whole = [
        _joined([TextSums(*sums) for _, *sums in record.views["position"]]) for record in records
    ]
    return PerplexityResult(
        name=name,
        tokenizer=model.tokenizer.name,
        segment_tokens=model.segment_tokens,
        total=_bin("all", 1, 0, whole),
        bins=tuple(
            _bin(view, *_range(view, number), found)
            for (view, number), found in sorted(held.items())
        ),
        texts=tuple((r.name, sums) for r, sums in zip(records, whole, strict=True)),
    )


def _bin(view: str, start: int, stop: int, found: Sequence[TextSums]) -> TextBin:
    below = [one.bytes * math.log(2) for one in found]
    nats = [one.nats for one in found]
    errors: list[float | None] = [ratio_error(nats, below), None, None]
    reset = [one.reset_nats for one in found if one.reset_nats is not None]
    if reset:
        gain = [a - b for a, b in zip(reset, nats, strict=True)]
        errors[1:] = [ratio_error(reset, below), ratio_error(gain, below)]
    return TextBin(view, start, stop, _joined(found), len(found), *errors)


def _joined(found: Sequence[TextSums]) -> TextSums:
    reset = [one.reset_nats for one in found if one.reset_nats is not None]
    return TextSums(
        tokens=sum(one.tokens for one in found),
        bytes=sum(one.bytes for one in found),
        nats=sum(one.nats for one in found),
        reset_nats=sum(reset) if reset else None,
    )


def _fingerprint(model: Any, reading: Reading, asked: tuple) -> str:
    """Sixteen letters for all that the numbers depend on."""
    parts = (
        answering.model_fingerprint(model),
        model.tokenizer.fingerprint(),
        model.config.data.align,
        reading.texts.digest(),
        asked,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
