"""Samples cut into segments: from one long row of tokens to the `Batch` that a model reads.

The text of a sample is context, question, ANSWER, answer, END, cut by `data.segmentation`. Where it
is cut depends on the T tokens kept for an answer, not on this sample's answer. Segments that a
short text does not need are empty and stand in front, so that the answered segments are always the
last ones; an empty segment changes no memory. Of a passage there is no such tail: it is cut by the
same rule, and every token of it but the first is a target at the place of the token before.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from rmt_jax import config
from rmt_jax.data import prompts, segmentation
from rmt_jax.data.compose import Sample
from rmt_jax.data.errors import DataError
from rmt_jax.data.story import Passage
from rmt_jax.data.tasks import Task
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.types import Batch, Segment


def collate(
    samples: Sequence[Sample | Passage],
    tokenizer: Tokenizer,
    *,
    segments: int,
    segment_tokens: int,
    answer_room: int,
    tasks: Mapping[str, Task],
    prompt: config.Prompt,
    answered_segments: int = 1,
    questions: int = 1,
    align: str = "left",
    probe_tokens: int = 0,
    mark_background_only: bool = False,
) -> Batch:
    """A batch with S = segments, L = segment_tokens, T = answer_room, R = answered_segments,
    Q = questions, N = probe_tokens.

    Intermediate questions beyond Q of a segment, outside the last R segments, or torn by a
    segment's end are not counted (weight 0). The question at the end is counted in the row of its
    task among `tasks`, all others as auxiliary. With `probe_tokens` the final question is asked of
    the memory after each of the last R segments but the last one too, where the facts read by then
    answer it: Q is one more then. `mark_background_only` fills in that field of `Batch`;
    `next_token` is there where one of `tasks` models a language.

    Raises DataError when a text does not fit in S segments.
    """
    place = {name: i for i, name in enumerate(tasks)}
    language = any(task.models_language for task in tasks.values())
    b, s, r = len(samples), segments, answered_segments
    answers = (b, r, questions + (probe_tokens > 0))
    batch = Batch(
        tokens=np.full((b, s, segment_tokens), tokenizer.pad, np.int32),
        mask=np.zeros((b, s, segment_tokens), bool),
        prompt=np.zeros((b, prompt.tokens), np.int32),
        prompt_mask=np.zeros((b, prompt.tokens), bool),
        task=np.array([place[sample.task] for sample in samples], np.int32),
        answer_start=np.zeros(answers, np.int32),
        answer=np.full((*answers, answer_room), tokenizer.pad, np.int32),
        weight=np.zeros((*answers, answer_room), np.float32),
        metric_row=np.full(answers, len(tasks), np.int32),
        probe=None,
        background_only=np.zeros((b, r), bool) if mark_background_only else None,
        next_token=np.full((b, s, segment_tokens), -1, np.int32) if language else None,
    )
    if probe_tokens:
        tokens = np.full((b, r, probe_tokens), tokenizer.pad, np.int32)
        batch = batch._replace(probe=Segment(tokens, np.zeros(tokens.shape, bool)))
    for i, sample in enumerate(samples):
        story = None if isinstance(sample, Passage) else sample.story
        description = (story and story.description) or tasks[sample.task].description
        question = "" if isinstance(sample, Passage) else sample.question
        batch.prompt[i], batch.prompt_mask[i] = prompts.ids(
            prompt, tokenizer, description, question
        )
        if isinstance(sample, Passage):
            _write_passage(batch, i, sample, align, tokenizer)
            continue
        bounds = segmentation.sample_bounds(
            sample.context, len(sample.question_ids), answer_room, segment_tokens, align, tokenizer
        )
        if len(bounds) - 1 > s:
            raise DataError(
                f"A text of {len(sample.context)} tokens and its question take {len(bounds) - 1} "
                f"segments of {segment_tokens}, but the batch has {s}."
            )
        _write_text(batch, i, sample, bounds, tokenizer)
        _write_intermediate(batch, i, sample, bounds, questions)
        if mark_background_only:
            _mark_background_only(batch, i, sample, bounds)
        if probe_tokens:
            _write_probes(batch, i, sample, bounds, tokenizer)
    return batch


def answer_after(sample: Sample, end: int) -> str:
    """The answer to the sample's question after the first `end` tokens of its context, '' where
    there is none yet. On its way the story must ask its final question
    (`StoryOptions.final_question_only`); a document answers at its end alone."""
    if sample.story is None:
        return ""
    read = sum(stop <= end for _, stop in sample.facts)
    if read == len(sample.facts):
        return sample.answer
    asked = sample.story.intermediate_questions
    known = [question.answer for question in asked if question.after_fact < read]
    return known[-1] if known else ""


def _write_text(batch: Batch, i: int, sample: Sample, bounds: np.ndarray, tokenizer: Tokenizer):
    """The text of sample i in its segments, and its question with the answer at the end."""
    first = batch.tokens.shape[1] - (len(bounds) - 1)  # segments before it are empty
    for k, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
        batch.tokens[i, first + k, : end - start] = sample.context[start:end]
        batch.mask[i, first + k, : end - start] = True
    size = int(bounds[-1] - bounds[-2])
    right = (*sample.answer_ids, tokenizer.end)
    tail = (*sample.question_ids, tokenizer.answer, *right)
    batch.tokens[i, -1, size : size + len(tail)] = tail
    batch.mask[i, -1, size : size + len(tail)] = True
    _write_answer(batch, (i, -1, 0), size + len(sample.question_ids), right)
    batch.metric_row[i, -1, 0] = batch.task[i]


def _write_passage(
    batch: Batch, i: int, passage: Passage, align: str, tokenizer: Tokenizer
) -> None:
    """Passage i in the last segments of its row, and the token after each of its own."""
    assert batch.next_token is not None
    s, size = batch.tokens.shape[1:]
    tokens = np.asarray(passage.tokens, np.int32)
    bounds = segmentation.passage_bounds(tokens[:-1], s, size, align, tokenizer)
    first = s - (len(bounds) - 1)
    for k, (start, end) in enumerate(itertools.pairwise(bounds.tolist()), start=first):
        batch.tokens[i, k, : end - start] = tokens[start:end]
        batch.mask[i, k, : end - start] = True
        batch.next_token[i, k, : end - start] = tokens[start + 1 : end + 1]


def _write_intermediate(
    batch: Batch, i: int, sample: Sample, bounds: np.ndarray, questions: int
) -> None:
    """Answers to the questions in the context of sample i."""
    r, answer_room = batch.answer.shape[1], batch.answer.shape[3]
    used = np.zeros(r, np.int32)
    used[-1] = 1  # the final question
    for question in sample.context_questions:
        k = int(np.searchsorted(bounds[1:], question.answer_start, "right"))
        here = _answered_place(bounds, k, r)
        inside = question.answer_start + len(question.answer) - 1 < bounds[k + 1]
        fits = len(question.answer) <= answer_room
        if here < 0 or not inside or used[here] >= questions or not fits:
            continue
        start = question.answer_start - int(bounds[k])
        _write_answer(batch, (i, here, int(used[here])), start, question.answer)
        used[here] += 1


def _mark_background_only(batch: Batch, i: int, sample: Sample, bounds: np.ndarray) -> None:
    """Which segments before the last one hold background alone, after a fact has been read."""
    assert batch.background_only is not None
    r = batch.answer.shape[1]
    for k, (start, end) in enumerate(itertools.pairwise(bounds[:-1].tolist())):
        here = _answered_place(bounds, k, r)
        if here >= 0 and sample.facts:
            facts = any(first < end and stop > start for first, stop in sample.facts)
            batch.background_only[i, here] = end > sample.facts[0][0] and not facts


def _write_probes(
    batch: Batch, i: int, sample: Sample, bounds: np.ndarray, tokenizer: Tokenizer
) -> None:
    """The final question after each segment but the last, where what was read answers it."""
    assert batch.probe is not None
    r, answer_room = batch.answer.shape[1], batch.answer.shape[3]
    size = batch.probe.tokens.shape[2]
    for k, end in enumerate(bounds[1:-1].tolist()):
        here, known = _answered_place(bounds, k, r), answer_after(sample, end)
        if here < 0 or not known:
            continue
        right = (*tokenizer.sentence(known), tokenizer.end)
        text = (*sample.question_ids, tokenizer.answer, *right)
        if len(text) > size or len(right) > answer_room:
            raise DataError(
                f"The question {sample.question!r} and its answer take {len(text)} tokens, "
                f"but a probe has {size}."
            )
        batch.probe.tokens[i, here, : len(text)] = text
        batch.probe.mask[i, here, : len(text)] = True
        _write_answer(batch, (i, here, -1), len(sample.question_ids), right)


def _answered_place(bounds: np.ndarray, k: int, r: int) -> int:
    """Where segment k of a text stands among the last R segments of a batch; below 0: before
    them."""
    return k - (len(bounds) - 1 - r)


def _write_answer(batch: Batch, place: tuple[int, int, int], start: int, answer) -> None:
    batch.answer_start[place] = start
    batch.answer[place][: len(answer)] = answer
    batch.weight[place][: len(answer)] = 1.0
