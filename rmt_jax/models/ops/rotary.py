"""Rotary position embedding (Su et al. 2021), halves as in GPT-NeoX.

Column i of a head turns with column i + d / 2, by position times the i-th of d / 2 frequencies. The
angles are made once per segment and serve every layer.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.config import setting


@dataclass(frozen=True)
class RopeOptions:
    """Settings of rotary positions, for the `Options` of a backbone.

    `llama3` is Llama 3.1's change for longer texts: a frequency that turns fewer than
    `rope_low_turns` times in `rope_trained_positions` is divided by `rope_factor`, one that turns
    more than `rope_high_turns` times stays, and between them the two are mixed.
    """

    rope_base: float = setting(10_000.0, "Base of the rotary frequencies.", least=1)
    rope_scaling: str = setting(
        "none", "Change of low frequencies for longer texts.", choices=("none", "llama3")
    )
    rope_factor: float = setting(8.0, "llama3: what divides low frequencies.", least=1)
    rope_low_turns: float = setting(1.0, "llama3: turns of a low frequency.", least=0)
    rope_high_turns: float = setting(4.0, "llama3: turns of a high frequency.", least=0)
    rope_trained_positions: int = setting(8192, "llama3: positions to turn in.", least=1)

    def frequencies(self, head_width: int, numpy: Any = jnp) -> jax.Array:
        """Radians per position, f32[d / 2], of heads of d = `head_width` columns (even). numpy:
        what computes; NumPy itself where JAX must not start yet."""
        found = frequencies(head_width, self.rope_base, numpy)
        if self.rope_scaling == "none":
            return found
        low, high = self.rope_low_turns, self.rope_high_turns
        turns = self.rope_trained_positions * found / (2 * numpy.pi)
        kept = numpy.clip((turns - low) / (high - low), 0, 1)
        return found * (kept + (1 - kept) / self.rope_factor)


class RotaryAngles(NamedTuple):
    """Of positions [B, N]."""

    cosine: jax.Array  # f32[B, N, d / 2]
    sine: jax.Array  # f32[B, N, d / 2]


def frequencies(head_width: int, base: float = 10_000.0, numpy: Any = jnp) -> jax.Array:
    """Radians per position, f32[d / 2], without scaling."""
    half = head_width // 2
    return base ** (-numpy.arange(half, dtype=numpy.float32) / half)


def rotary_angles(positions: jax.Array, frequency: jax.Array) -> RotaryAngles:
    """Of positions i32[B, N] and frequencies f32[d / 2]."""
    angles = positions[:, :, None].astype(jnp.float32) * frequency
    return RotaryAngles(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, angles: RotaryAngles) -> jax.Array:
    """x [B, N, H, d] turned by the angles of its N places; computed in float32. Of fewer angles
    than d / 2 the first columns of a head are turned, and the rest stays."""
    sine, cosine = angles.sine[:, :, None], angles.cosine[:, :, None]
    turned = 2 * sine.shape[-1]
    rest = x[..., turned:]
    first, second = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    both = jnp.concatenate(parts, axis=-1).astype(x.dtype)
    return both if not rest.shape[-1] else jnp.concatenate([both, rest], axis=-1)


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """[..., heads d] with the columns that turn together side by side, as in Meta's own files and
    GGUF, in the order of this module: all first ones of a head, then all second ones."""
    pairs = weight.reshape(*weight.shape[:-1], heads, -1, 2)
    return pairs.swapaxes(-1, -2).reshape(weight.shape)
