"""The training loss: cross-entropy at answer tokens, and at all tokens of passages, as sums a row.

A batch's loss is the mean over its answer tokens and the mean over its passages' tokens, each times
the share of its texts (`scales`): hundreds of tokens of a passage weigh as much as one text with a
few tokens of an answer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models import language, platform
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.recurrence import Outputs
from rmt_jax.types import Batch, Sums


def answer_sums(
    backbone: Backbone, hidden: jax.Array, batch: Batch, rows: int
) -> tuple[jax.Array, Sums]:
    """Cross-entropy of the answers, summed; and the sums that make the metrics.

    Args:
      backbone: makes the logits.
      hidden: [B, R, Q, T, D] at the answers' places (`models.recurrence.Outputs`).
      batch: its targets, weights and metric rows.
      rows: number of metric rows, len(tasks) + 1; the last counts auxiliary questions.

    Returns:
      The weighted cross-entropy summed over the batch (f32[], nats; divide by the weight of the
      whole step's batch), and `Sums`.
    """
    entropy, right_token = _by_token(backbone, hidden, batch.answer)
    entropy = entropy * batch.weight  # [B, R, Q, T]
    asked = batch.weight > 0
    hit = right_token | ~asked
    question = jnp.any(asked, axis=-1)  # [B, R, Q]
    right = jnp.all(hit, axis=-1) & question

    def by_row(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            values.astype(jnp.float32).ravel(), batch.metric_row.ravel(), num_segments=rows
        )

    loss = by_row(entropy.sum(-1))
    sums = Sums(loss, by_row(batch.weight.sum(-1)), by_row(right), by_row(question))
    return loss.sum(), jax.lax.stop_gradient(sums)


def _by_token(
    backbone: Backbone, hidden: jax.Array, answer: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy f32[B, R, Q, T], and whether the likeliest token is the answer's; in chunks
    where logits of all places would be many (15 questions in each of 8 segments of 8 texts, four
    tokens, a vocabulary of 49,152: 755 MB, and their gradient as much)."""

    def of(logits: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits.astype(jnp.float32)
        return language.cross_entropy(logits, answer), jnp.argmax(logits, axis=-1) == answer

    vocab = language.vocabulary(backbone, hidden)
    at_once = language.answer_logits(vocab, hidden.shape[-1]) * platform.sharers()
    if answer.size * vocab <= at_once:  # so few are kept for the backward pass
        return of(backbone.logits(hidden), answer)
    flat = hidden.reshape(len(hidden), -1, hidden.shape[-1])
    found = language.in_chunks(backbone, flat, answer.reshape(len(answer), -1), of, at_once)
    entropy, right = (x.reshape(answer.shape) for x in found)
    return entropy, right


def batch_sums(
    backbone: Backbone, found: Outputs, batch: Batch, rows: int
) -> tuple[jax.Array, jax.Array | None, Sums]:
    """The summed cross-entropy of answers and that of passages (None where no task models a
    language), and the `Sums` of both. rows: as in `answer_sums`."""
    total, sums = answer_sums(backbone, found.hidden, batch, rows)
    if found.nats is None or batch.next_token is None:
        return total, None, sums

    def by_task(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values.astype(jnp.float32), batch.task, num_segments=rows)

    loss = by_task(found.nats.sum(axis=1))
    told = jax.lax.stop_gradient(loss), by_task((batch.next_token >= 0).sum(axis=(1, 2)))
    texts = by_task(jnp.ones(len(batch.task)))
    both = sums._replace(loss=sums.loss + told[0], weight=sums.weight + told[1], texts=texts)
    return total, loss.sum(), both


class Scales(NamedTuple):
    """What the sums of a batch, or of one of its microbatches, are multiplied with: f32[] each."""

    answers: jax.Array
    passages: jax.Array | None  # None where no task models a language
    drift: jax.Array  # of segments of background alone


def scales(batch: Batch) -> Scales:
    """Of the batch of a whole step."""
    asked = jnp.maximum(batch.weight.sum(), 1e-9)
    drift = (
        jnp.zeros(())
        if batch.background_only is None
        else 1.0 / jnp.maximum(batch.background_only.sum(), 1)
    )
    if batch.next_token is None:
        return Scales(1.0 / asked, None, drift)
    told = batch.next_token >= 0
    share = told.any(axis=(1, 2)).mean()
    return Scales((1.0 - share) / asked, share / jnp.maximum(told.sum(), 1), drift)
