"""Samples folded into segments: from one long row of tokens to the `Batch` that a model reads.

The text of a sample is context, question, ANSWER, answer, END, cut by `data.cuts`. The layout
depends on the room T kept for an answer, not on this sample's answer. Segments that a short text
does not need are empty and stand in front, so that the answered segments are always the last ones;
an empty segment changes no memory.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from rmt_jax import config
from rmt_jax.data import prompts, segmentation
from rmt_jax.data.compose import Sample
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.types import Batch, Segment


def fold(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    *,
    segments: int,
    segment_tokens: int,
    room: int,
    answered: int = 1,
    questions: int = 1,
    tasks: Sequence[str],
    prompt: config.Prompt,
    align: str = "left",
    probe_tokens: int = 0,
    idle: bool = False,
) -> Batch:
    """`Batch` with S = segments, L = segment_tokens, T = room, R = answered, Q = questions.

    Questions in the context beyond Q of a segment, outside the last R segments, or torn by a
    segment's end are not counted (weight 0). The question at the end is the task's row of the
    metrics, all others are auxiliary. With `probe_tokens` (N) the final question is asked of the
    memory after each of the last R segments but the last one too, where the facts read by then
    answer it: Q is one more then. `idle`: tell which of these segments, behind the first fact, hold
    background alone.
    Raises ValueError when a text does not fit in S segments.
    """
    b, s, length = len(samples), segments, segment_tokens
    r, q, t, n = answered, questions, room, probe_tokens
    shown = q + (n > 0)
    tokens = np.full((b, s, length), tokenizer.pad, np.int32)
    mask = np.zeros((b, s, length), bool)
    at = np.zeros((b, r, shown), np.int32)
    answer = np.full((b, r, shown, t), tokenizer.pad, np.int32)
    weight = np.zeros((b, r, shown, t), np.float32)
    row = np.full((b, r, shown), len(tasks), np.int32)
    probe = np.full((b, r, n), tokenizer.pad, np.int32)
    probe_mask = np.zeros((b, r, n), bool)
    calm = np.zeros((b, r), bool)
    told = np.zeros((b, prompt.tokens), np.int32)
    told_mask = np.zeros((b, prompt.tokens), bool)
    number = {name: i for i, name in enumerate(tasks)}

    for i, sample in enumerate(samples):
        question = len(sample.question_ids)
        bounds = segmentation.bounds(sample.context, question, room, length, align, tokenizer)
        parts = list(itertools.pairwise(bounds.tolist()))
        empty = s - len(parts)
        if empty < 0:
            raise ValueError(
                f"A text of {len(sample.context)} tokens and its question take {len(parts)} "
                f"segments of {length}, but the batch has {s}."
            )
        filled = np.zeros(r, np.int32)
        tail = (*sample.question_ids, tokenizer.answer, *sample.answer_ids, tokenizer.end)
        for k, (start, end) in enumerate(parts):
            tokens[i, empty + k, : end - start] = sample.context[start:end]
            mask[i, empty + k, : end - start] = True
        size = parts[-1][1] - parts[-1][0]
        tokens[i, -1, size : size + len(tail)] = tail
        mask[i, -1, size : size + len(tail)] = True
        right = (*sample.answer_ids, tokenizer.end)
        _count(at, answer, weight, (i, r - 1, 0), size + len(sample.question_ids), right)
        row[i, r - 1, 0] = number[sample.task]
        filled[r - 1] = 1
        for planted in sample.questions:
            k = int(np.searchsorted(bounds[1:], planted.at, "right"))
            start, end = parts[k]
            here = empty + k - (s - r)
            inside = planted.at + len(planted.answer) - 1 < end
            if here < 0 or not inside or filled[here] >= q or len(planted.answer) > t:
                continue
            place = (i, here, int(filled[here]))
            _count(at, answer, weight, place, planted.at - start, planted.answer)
            filled[here] += 1
        for k, (start, end) in enumerate(parts[:-1] if n or idle else ()):
            here = empty + k - (s - r)
            if here < 0:
                continue
            inside = (first < end and stop > start for first, stop in sample.facts)
            calm[i, here] = end > sample.facts[0][0] and not any(inside)
            known = answered_by(sample, end) if n else ""
            if not known:
                continue
            right = (*tokenizer.sentence(known), tokenizer.end)
            words = (*sample.question_ids, tokenizer.answer, *right)
            if len(words) > n or len(right) > t:
                raise ValueError(
                    f"The question {sample.question!r} and its answer take {len(words)} tokens, "
                    f"but a probe has {n}."
                )
            probe[i, here, : len(words)] = words
            probe_mask[i, here, : len(words)] = True
            place = (i, here, q)
            _count(at, answer, weight, place, len(sample.question_ids), right)
        told[i], told_mask[i] = prompts.ids(prompt, tokenizer, sample.task, sample.question)
    task = np.array([number[sample.task] for sample in samples], np.int32)
    probes = Segment(probe, probe_mask) if n else None
    still = calm if idle else None
    return Batch(tokens, mask, told, told_mask, task, at, answer, weight, row, probes, still)


def answered_by(sample: Sample, end: int) -> str:
    """The answer to the sample's question after the first `end` tokens of its context, '' where
    there is none yet. The story must have the final question on its way (`Manner.same`)."""
    told = sum(stop <= end for _, stop in sample.facts)
    if told == len(sample.facts):
        return sample.answer
    found = [ask.answer for ask in sample.story.asks if ask.after < told]
    return found[-1] if found else ""


def _count(at, answer, weight, place: tuple[int, int, int], where: int, right) -> None:
    at[place] = where
    answer[place][: len(right)] = right
    weight[place][: len(right)] = 1.0
