"""Every token predicted from those before it: cross-entropy, with logits of a few places at a time.

Logits of a segment, [B, L, V], are most of the memory where the vocabulary is large. Here those of
a chunk of places are made, used and forgotten; the backward pass makes them again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rmt_jax.models.backbones import Backbone
from rmt_jax.models.cells import Memory
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Prompt, Segment

LOGITS = 1 << 24  # numbers held at once, of all texts together: 64 MB in float32


def nats(
    backbone: Backbone, hidden: jax.Array, next_token: jax.Array, logits: int = LOGITS
) -> jax.Array:
    """Cross-entropy f32[B, L] of the tokens that follow, in nats; 0 where none is predicted.

    Args:
      hidden: [B, L, D] after the final norm.
      next_token: i32[B, L], -1 where none is predicted.
      logits: how many may be held at once; a place of every text is the least.
    """

    def entropy(logits: jax.Array, next_token: jax.Array) -> jax.Array:
        of_token = cross_entropy(logits, jnp.maximum(next_token, 0))
        return jnp.where(next_token < 0, 0.0, of_token)

    return in_chunks(backbone, hidden, next_token, entropy, logits)


def cross_entropy(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Of the tokens i32[...], by logits f32[..., V]: f32[...], in nats."""
    right = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - right


def answer_logits(vocab: int, width: int) -> int:
    """How many logits of answers a device holds at once: of D/4 places or more, since each chunk
    reads the whole table [V, D] that makes them, and gathers it where it is split."""
    return max(LOGITS, vocab * width // 4)


def in_chunks(
    backbone: Backbone,
    hidden: jax.Array,
    token: jax.Array,
    of: Callable[[jax.Array, jax.Array], Any],
    logits: int = LOGITS,
) -> Any:
    """`of(logits f32[B, n, V], token i32[B, n])`, arrays [B, n], for n of the L places at a time:
    arrays [B, L].

    Args:
      hidden: [B, L, D] after the final norm.
      token: i32[B, L], what `of` compares the logits with.
      logits: how many may be held at once; a place of every text is the least.
    """
    batch, places = token.shape
    count = -(-places // max(1, logits // (batch * vocabulary(backbone, hidden))))
    size = -(-places // count)

    def chunk(hidden: jax.Array, token: jax.Array) -> Any:
        return of(backbone.logits(hidden), token)

    if count == 1:
        return jax.checkpoint(chunk)(hidden, token)

    def chunks(x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [count, B, size, ...]."""
        x = jnp.pad(x, [(0, 0), (0, count * size - places)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)

    # Inside a scan, common subexpressions can't undo the rematerialisation.
    body = jax.checkpoint(chunk, prevent_cse=False)
    _, found = jax.lax.scan(
        lambda _, inputs: (None, body(*inputs)), None, (chunks(hidden), chunks(token))
    )
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, count * size)[:, :places], found)


def vocabulary(backbone: Backbone, hidden: jax.Array) -> int:
    """V, the number of logits that `backbone` makes of hidden [..., D]."""
    return jax.eval_shape(backbone.logits, hidden).shape[-1]


def read_nats(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    next_token: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
    reset: jax.Array,
) -> tuple[Memory, jax.Array]:
    """Reads the first `count` (i32[]) of S segments, and `nats` f32[B, S, L] of what follows each
    of their places. One program for any count; without gradient.

    Args:
      tokens, mask, next_token: [B, S, L].
      reset: bool[]; whether the memory is set back before each segment, so that nothing is known
        but the segment itself.
    """
    each = [jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask, next_token)]
    prompt, layer_params = model.embed_prompt(prompt), model.per_layer_params()
    start = model.initial(tokens.shape[0])

    def body(index: jax.Array, carry: tuple[Memory, jax.Array]) -> tuple[Memory, jax.Array]:
        memory, found = carry
        tokens, mask, next_token = (x[index] for x in each)
        # The state alone: whether a text has started decides where a prompt at the start is seen.
        state = jax.tree.map(lambda x, y: jnp.where(reset, x, y), start.state, memory.state)
        segment = Segment(tokens, mask)
        hidden, memory = model.step(
            memory._replace(state=state), segment, prompt, None, layer_params
        )
        return memory, found.at[index].set(nats(model.backbone, hidden, next_token))

    found = jnp.zeros(each[0].shape, jnp.float32)
    memory, found = jax.lax.fori_loop(0, count, body, (memory, found))
    return memory, found.swapaxes(0, 1)
