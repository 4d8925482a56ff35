"""How likely each token of a text is, given all before it: segments as one scan, logits in chunks.

Letters as in `rmt_jax.types`: B texts, S segments, L tokens of a segment, D width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models.cells import Memory
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.models.recurrence import stop_gradient_params
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Prompt, Segment

# Logits that are held at once, B · places · V: 64 MB of float32.
CHUNK = 2**24


class Reading(NamedTuple):
    """Where a text was left: what `read_scores` goes on from."""

    memory: Memory
    hidden: jax.Array  # [B, D]  of the last token, after the final norm: the next follows from it
    begun: jax.Array  # bool[B]  there was a token


class TokenScores(NamedTuple):
    """Of each token of a text; 0 and True where there is padding, and at a text's first token,
    which nothing predicts."""

    logprob: jax.Array  # f32[B, S, L]  nats
    likeliest: jax.Array  # bool[B, S, L]  no token is more likely (of equals, the first)


def token_logprobs(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None = None,
) -> tuple[jax.Array, Memory]:
    """Log-probability f32[B, S, L], in nats, of each token given those before it; and the memory
    after the text.

    tokens i32[B, S, L], mask bool[B, S, L], padding anywhere. The first token of a segment follows
    from the last one of the segment before. 0 at padding, and at the first token of a text:
    `memory` holds what was read before, but not what it predicts (`read_scores` goes on from
    there). Without gradient.
    """
    scores, end = read_scores(model, begin(model, memory), tokens, mask, prompt)
    return scores.logprob, end.memory


def begin(model: RecurrentModel, memory: Memory) -> Reading:
    """At the first token of texts that stand behind what `memory` has read."""
    batch = memory.started.shape[0]
    hidden = jnp.zeros((batch, model.backbone.width), model.backbone.dtype)
    return Reading(memory, hidden, jnp.zeros(batch, bool))


def read_scores(
    model: RecurrentModel,
    start: Reading,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None = None,
) -> tuple[TokenScores, Reading]:
    """`token_logprobs` of a text that comes in pieces, each i32[B, S, L], and where it was left."""
    model = stop_gradient_params(model)
    prompt, layer_params = model.embed_prompt(prompt), model.per_layer_params()

    def body(reading: Reading, segment: Segment) -> tuple[Reading, TokenScores]:
        hidden, memory = model.step(reading.memory, segment, prompt, layer_params=layer_params)
        known = jnp.asarray(segment.mask)
        before = _last_real(known)  # [B, L + 1], 0: none in this segment
        states = jnp.concatenate([reading.hidden[:, None].astype(hidden.dtype), hidden], axis=1)
        scores = _scores(model, gather_positions(states, before[:, :-1]), segment.tokens)
        counts = known & ((before[:, :-1] > 0) | reading.begun[:, None])
        scores = TokenScores(
            jnp.where(counts, scores.logprob, 0.0), jnp.where(counts, scores.likeliest, True)
        )
        left = gather_positions(states, before[:, -1:])[:, 0].astype(reading.hidden.dtype)
        return Reading(memory, left, reading.begun | known.any(axis=1)), scores

    by_segment = (jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask))
    end, scores = jax.lax.scan(body, start, Segment(*by_segment))
    return TokenScores(*(jnp.swapaxes(x, 0, 1) for x in scores)), end


def _last_real(mask: jax.Array) -> jax.Array:
    """How many places, up to the last real one before place n, i32[B, L + 1]: 0 for none, so that
    it is an index into [what was before; the places]."""
    places = jnp.where(mask, jnp.arange(1, mask.shape[1] + 1), 0)
    found = jax.lax.cummax(places, axis=1)
    return jnp.pad(found, ((0, 0), (1, 0)))


def _scores(model: RecurrentModel, hidden: jax.Array, tokens: jax.Array) -> TokenScores:
    """Of tokens i32[B, L] that follow from hidden [B, L, D], some places at a time."""
    batch, length = tokens.shape
    vocab = jax.eval_shape(model.backbone.logits, hidden).shape[-1]
    places = min(length, max(1, CHUNK // (batch * vocab)))
    parts = -(-length // places)

    def score(part: tuple[jax.Array, jax.Array]) -> TokenScores:
        states, wanted = part
        logits = model.backbone.logits(states)
        own = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        best = jnp.argmax(logits, axis=-1) == wanted
        return TokenScores(own - jax.nn.logsumexp(logits, axis=-1), best)

    if parts == 1:
        return score((hidden, tokens))

    def cut(x: jax.Array) -> jax.Array:
        """[B, L, …] -> [parts, B, places, …]."""
        rest = [(0, parts * places - length if axis == 1 else 0) for axis in range(x.ndim)]
        padded = jnp.pad(x, rest)
        return jnp.swapaxes(padded.reshape(batch, parts, places, *x.shape[2:]), 0, 1)

    scores = jax.lax.map(score, (cut(hidden), cut(tokens)))
    return TokenScores(*(jnp.swapaxes(x, 0, 1).reshape(batch, -1)[:, :length] for x in scores))
