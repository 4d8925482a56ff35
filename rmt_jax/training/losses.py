"""The training loss: cross-entropy at answer tokens, as sums a row."""

import jax
import jax.numpy as jnp

from rmt_jax.types import Batch, Sums


def answer_sums(logits: jax.Array, batch: Batch, rows: int) -> tuple[jax.Array, Sums]:
    """Cross-entropy of the answers, summed; and the sums that make the metrics.

    Args:
      logits: f32[B, R, Q, T, V] at the answers' places (`models.recurrence.answer_logits`).
      batch: its targets, weights and metric rows.
      rows: number of metric rows, len(tasks) + 1; the last counts auxiliary questions.

    Returns:
      The weighted cross-entropy summed over the batch (f32[], nats; divide by the weight of the
      whole step's batch), and `Sums`.
    """
    logits = logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, batch.answer[..., None], axis=-1)[..., 0]
    entropy = (jax.nn.logsumexp(logits, axis=-1) - target) * batch.weight  # [B, R, Q, T]
    asked = batch.weight > 0
    hit = (jnp.argmax(logits, axis=-1) == batch.answer) | ~asked
    question = jnp.any(asked, axis=-1)  # [B, R, Q]
    right = jnp.all(hit, axis=-1) & question

    def by_row(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            values.astype(jnp.float32).ravel(), batch.metric_row.ravel(), num_segments=rows
        )

    loss = by_row(entropy.sum(-1))
    sums = Sums(loss, by_row(batch.weight.sum(-1)), by_row(right), by_row(question))
    return loss.sum(), jax.lax.stop_gradient(sums)
