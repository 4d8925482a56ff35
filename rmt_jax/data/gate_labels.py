"""Segments in which it is known what stands at each place: background, a fact, or a question.

The composer put the facts there, so each gate of a memory can be taught its own token.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rmt_jax.config import Config, Data, GateTraining
from rmt_jax.data import segmentation
from rmt_jax.data.collate import collate
from rmt_jax.data.compose import Composer, Sample
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import NEW_NAMES
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import StoryOptions
from rmt_jax.data.tasks import question_tasks
from rmt_jax.data.tokenizer import Tokenizer

BACKGROUND, FACT, QUESTION, PADDING = range(4)
HIDDEN = 6 / 7  # share of the texts with background


class LabelledSegments(NamedTuple):
    """B segments with what stands at each place."""

    tokens: np.ndarray  # i32[B, L]
    label: np.ndarray  # i8[B, L]  BACKGROUND | FACT | QUESTION | PADDING
    price: np.ndarray  # f32[B, L]  of an error there
    prompt: np.ndarray  # i32[B, P]
    prompt_mask: np.ndarray  # bool[B, P]


def labelled_segments(
    config: Config, tokenizer: Tokenizer, data: Data, gates: GateTraining, split: str
) -> Iterator[LabelledSegments]:
    """Batches without end of segments of texts of the tasks, cut as training cuts them: half with
    new names if training had any, `data.hard_negative_rate` of them hidden among hard negatives,
    found or made (`Composer.sample`), one in seven with no background at all.

    A pure function of its arguments. `config` is that of the model; its Data section is `data`'s.
    """
    asking = question_tasks(data)
    if not asking:
        raise DataError(
            f"Gates are taught where facts stand, and {', '.join(data.tasks)} has none: train on a"
            " task that asks something, too."
        )
    size = config.model.segment_tokens
    composer = Composer(data, tokenizer, split, segment_tokens=size)
    prices = np.array(
        [gates.price_background, gates.price_fact, gates.price_question, 0.0], np.float32
    )
    held: list[tuple[np.ndarray, ...]] = []
    for index in itertools.count():
        rng = AddressedRng(data.seed, index, 11)
        task = rng.pick(asking)
        facts = rng.pick(gates.facts)
        names = NEW_NAMES if rng.uniform() < 0.5 and data.new_names else ()
        options = StoryOptions(
            (facts.least, facts.most) if facts else None, names, question_rate=1.0
        )
        segments = rng.pick(gates.segments)
        hidden, negatives = rng.uniform() < HIDDEN, ""
        if rng.uniform() < data.hard_negative_rate:
            negatives = "made" if rng.uniform() < gates.made_negatives else "found"
        share = rng.pick((0.0, 0.2, 0.5))
        sample = composer.sample(
            task, f"{segments}s", data.seed, index, options,
            hidden=hidden, question_share=share, hard_negatives=negatives,
        )  # fmt: skip
        text = collate(
            [sample], tokenizer, segments=segments, segment_tokens=size,
            answer_room=composer.answer_room, tasks=composer.tasks, prompt=config.prompt,
            align=data.align,
        )  # fmt: skip
        label = np.full(text.tokens.shape, PADDING, np.int8)
        known = place_labels(sample, tokenizer)
        rest = text.mask.sum() - len(known)
        label[text.mask] = np.pad(known, (0, rest), constant_values=QUESTION)
        price = prices[label]
        price[label == FACT] *= max(1.0, gates.least_fact_tokens / (label == FACT).sum())
        for part in np.flatnonzero(text.mask[0].any(axis=1)):  # a short text's first ones are empty
            inside = (array[0, part] for array in (text.tokens, label, price))
            held.append((*inside, text.prompt[0], text.prompt_mask[0]))
        if index % gates.texts_mixed < gates.texts_mixed - 1:
            continue
        order = AddressedRng(data.seed, index, 12).numpy.permutation(len(held))
        whole = len(held) // gates.batch * gates.batch
        for group in order[:whole].reshape(-1, gates.batch):
            parts = zip(*(held[i] for i in group), strict=True)
            yield LabelledSegments(*(np.stack(part) for part in parts))
        held = [held[i] for i in order[whole:]]


def place_labels(sample: Sample, tokenizer: Tokenizer) -> np.ndarray:
    """What stands at each place of a sample's context, i8[n]."""
    label = np.full(len(sample.context), BACKGROUND, np.int8)
    for start, stop in sample.facts:
        label[start:stop] = FACT
    ends = segmentation.sentence_ends(sample.context, tokenizer, "sentence")
    assert ends is not None
    ends = np.append(0, ends)
    for question in sample.context_questions:
        start = ends[np.searchsorted(ends, question.answer_start, "right") - 1]
        label[start : question.answer_start + 1 + len(question.answer)] = QUESTION
    return label
