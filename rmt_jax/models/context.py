"""What every layer of a segment is given beside its input, and what it keeps to decode."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models.ops.positions import gather_positions


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "mask", "visible", "position_data"],
    meta_fields=["sections", "read_tokens", "write_tokens", "packed", "causal"],
)
@dataclass(frozen=True)
class AttentionContext:
    """Where the places of one segment stand and what they may see: the same for every layer.

    The places are [read memory; task prompt; text; write memory]; N of them.
    """

    positions: jax.Array  # i32[B, N]  real tokens before this place
    mask: jax.Array  # bool[B, N]  False: padding
    visible: jax.Array  # bool[B, N, K]  place n may attend to key k
    position_data: Any  # what `Backbone.position_data` makes of the positions, once per segment
    sections: tuple[tuple[int, int], ...]  # [start, stop) of the prompt, if any, and of the text
    read_tokens: int = 0  # places of read memory in front
    write_tokens: int = 0  # places of write memory at the end
    packed: bool = False  # all padding stands behind everything real, and so behind write memory
    causal: bool = True  # no place sees a later one; else write memory sees all of itself

    @property
    def text(self) -> tuple[int, int]:
        """[start, stop) of the text's places."""
        return self.sections[-1]

    def write_memory(self, x: jax.Array) -> jax.Array:
        """x [B, N, D] at the places of write memory, [B, M, D]."""
        if self.packed:
            return gather_positions(x, self._last_real())
        return x[:, x.shape[1] - self.write_tokens :]

    def set_write_memory(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        """x [B, N, D] with [B, M, D] at the places of write memory."""
        if not self.packed:
            return x.at[:, x.shape[1] - self.write_tokens :].set(memory)
        return x.at[jnp.arange(len(x))[:, None], self._last_real()].set(memory)

    def _last_real(self) -> jax.Array:
        """The last M real places, i32[B, M]: write memory is always real, the last that is."""
        real = self.mask.sum(axis=1, dtype=jnp.int32)
        return real[:, None] - self.write_tokens + jnp.arange(self.write_tokens)


class KVCache(NamedTuple):
    """What a layer keeps of the places that it has seen, to decode the next one."""

    keys: jax.Array  # [B, K, …]  per place: attention's keys, or whatever the layer looks up
    values: jax.Array  # [B, K, …]
    last_inputs: Any = ()  # of fixed size whatever K is: GPT-2's short convolution keeps its last
    # inputs, [B, conv_width - 1, D]


class NormedInput(NamedTuple):
    """What a layer's attention reads, before queries, keys and values are made of it."""

    normed: jax.Array  # [B, N, D]
    last_inputs: Any = ()  # as in `KVCache`
