"""How likely given texts are: any length, segment after segment through memory."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.data import segmentation
from rmt_jax.evaluation import answering
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.runtime import switches
from rmt_jax.types import Prompt

BLOCK = 64  # segments that one call of the compiled program takes at most


class TextScores(NamedTuple):
    """Of the n tokens of a text, each given those before it; 0 and True of the first one."""

    logprob: np.ndarray  # f32[n]  nats
    likeliest: np.ndarray  # bool[n]  no token is more likely


@switches.neutral()
def score_texts(
    model: Any,
    texts: Sequence[np.ndarray],
    *,
    batch: int,
    prompts: Sequence[EncodedQuestion] | None = None,
) -> list[TextScores]:
    """The scores of texts i32[n], n at least 1, cut into segments as in training.

    `batch` texts of like lengths are read side by side. prompts: whose task prompts they are read
    with; None: without.
    """
    order = np.argsort([len(text) for text in texts], kind="stable")
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        rows = [*group, *[group[0]] * (batch - len(group))]  # one program for each batch size
        asked = None if prompts is None else answering.prompts(model, [prompts[i] for i in rows])
        scores = _score_batch(model, [np.asarray(texts[i], np.int32) for i in rows], asked)
        for place, score in zip(group, scores, strict=False):
            found[place] = score
    return found


def _score_batch(
    model: Any, texts: Sequence[np.ndarray], prompt: Prompt | None
) -> list[TextScores]:
    size = model.segment_tokens
    bounds = [_bounds(model, text) for text in texts]
    segments = max(len(b) - 1 for b in bounds)
    # 1, 2, 4, … segments or blocks of 64: few programs, whatever the lengths.
    block = min(BLOCK, 1 << (segments - 1).bit_length())
    shape = (len(texts), -(-segments // block) * block, size)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for b, (text, cuts) in enumerate(zip(texts, bounds, strict=True)):
        for k, (begin, end) in enumerate(itertools.pairwise(cuts)):
            tokens[b, k, : end - begin], mask[b, k, : end - begin] = text[begin:end], True
    begin, read = programs(model)
    reading, logprob, likeliest = begin(model.params, model.initial_memory(len(texts))), [], []
    for start in range(0, shape[1], block):
        part = (x[:, start : start + block] for x in (tokens, mask))
        scores, reading = read(model.params, reading, *part, prompt)
        logprob.append(np.asarray(scores.logprob))
        likeliest.append(np.asarray(scores.likeliest))
    whole = [np.concatenate(parts, axis=1) for parts in (logprob, likeliest)]
    return [TextScores(*(x[b][mask[b]] for x in whole)) for b in range(len(texts))]


def _bounds(model: Any, text: np.ndarray) -> np.ndarray:
    """Where segments begin and end, i64[S + 1]."""
    align, ends = model.config.data.align, None
    if align == "sentence":  # the tokenizer is needed for nothing else
        ends = segmentation.sentence_ends(text, model.tokenizer, align)
    return np.unique(segmentation.segment_bounds(len(text), 0, model.segment_tokens, align, ends))


@functools.lru_cache(maxsize=1)
def programs(model: Any) -> tuple[Any, Any]:
    """Compiled: the start of a reading, and `models.likelihood.read_scores`."""
    from rmt_jax.models import likelihood

    def read(module, reading, tokens, mask, prompt):
        shown = None if model.config.prompt.source == "none" else prompt
        return likelihood.read_scores(module, reading, tokens, mask, shown)

    return model.compiled(likelihood.begin), model.compiled(read)
