"""Random choices at an address: one numpy generator, drawn in blocks.

A story needs hundreds of tiny draws; a call of `numpy.random.Generator` costs more than the draw.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
BLOCK = 128


class AddressedRng:
    """Uniform draws from `numpy.random.default_rng(address)`: the same address gives the same
    draws, anywhere."""

    def __init__(self, *address: int):
        self._generator = np.random.default_rng(address)
        self._block: list[float] = []

    def uniform(self) -> float:
        """A float in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(BLOCK).tolist()
        return self._block.pop()

    def below(self, n: int) -> int:
        """An integer in 0 ... n - 1."""
        return int(self.uniform() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in low ... high, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        if not self._block:  # `uniform`, written out: this is where simulators spend their time
            self._block = self._generator.random(BLOCK).tolist()
        return items[int(self._block.pop() * len(items))]

    def weighted(self, items: Sequence[Item], weights: Sequence[float]) -> Item:
        u = self.uniform() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            u -= weight
            if u < 0:
                return item
        return items[-1]

    def sample(self, items: Sequence[Item], n: int) -> list[Item]:
        """n different items in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(n)]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        return self.sample(items, len(items))

    @property
    def numpy(self) -> np.random.Generator:
        """The generator itself, for whole arrays."""
        return self._generator
