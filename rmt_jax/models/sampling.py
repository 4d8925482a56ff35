"""How the next token is chosen: the likeliest one, or drawn.

Letters as in `rmt_jax.types`: B texts, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.config import ConfigError


class SamplingError(ConfigError):
    """Settings that nothing can be drawn with; the message is a sentence for the user."""


class Draw(NamedTuple):
    """`Sampling` as arrays, so that one program serves all settings."""

    temperature: jax.Array  # f32[]
    top_k: jax.Array  # i32[]
    top_p: jax.Array  # f32[]
    key: jax.Array  # of jax.random


@dataclass(frozen=True)
class Sampling:
    """Tokens are drawn with these settings. The same seed gives the same tokens for the same texts
    side by side.

    temperature: divides the logits. top_k: of the k likeliest tokens only (0: all). top_p: of the
    fewest likeliest tokens only that have this probability together (Holtzman et al. 2020), after
    temperature and top_k. Raises SamplingError.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SamplingError(
                f"The temperature is {self.temperature:g}: give a number above 0, or draw nothing,"
                " and the likeliest token is taken."
            )
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}: give a number of tokens, or 0 for all.")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p:g}: give a probability above 0, up to 1.")
        if not 0 <= self.seed < 2**32:
            raise SamplingError(f"The seed is {self.seed}: give a whole number from 0 to 2^32 - 1.")

    def arrays(self) -> Draw:
        return Draw(
            jnp.float32(self.temperature),
            jnp.int32(self.top_k),
            jnp.float32(self.top_p),
            jax.random.key(self.seed),
        )


def next_token(logits: jax.Array, draw: Draw | None, step: jax.Array | int) -> jax.Array:
    """i32[B] of logits f32[B, V]: the likeliest, or drawn for token number `step` of each text."""
    if draw is not None:
        key = jax.random.fold_in(draw.key, step)
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(logits)))
        noise = jax.vmap(lambda row: jax.random.gumbel(row, logits.shape[1:]))(rows)
        logits = allowed(logits, draw) + noise  # the largest is a draw from the softmax
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def allowed(logits: jax.Array, draw: Draw) -> jax.Array:
    """logits f32[B, V] over the temperature; -inf where top_k and top_p leave a token out."""
    logits = logits / draw.temperature
    falling = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.where(draw.top_k > 0, jnp.minimum(draw.top_k, logits.shape[-1]), logits.shape[-1])
    least = jnp.take(falling, last - 1, axis=-1)[:, None]
    chance = jax.nn.softmax(jnp.where(falling < least, -jnp.inf, falling), axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance  # of the tokens that are likelier
    most = jnp.where(draw.top_p < 1, draw.top_p, jnp.inf)  # sums of chances are rounded
    count = jnp.sum((before < most) & (chance > 0), axis=-1, keepdims=True)
    least = jnp.maximum(least, jnp.take_along_axis(falling, jnp.maximum(count, 1) - 1, axis=-1))
    return jnp.where(logits < least, -jnp.inf, logits)
