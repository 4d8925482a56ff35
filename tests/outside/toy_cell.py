"""A memory cell from outside the package: memory tokens as exponential averages over segments."""

from dataclasses import dataclass

from flax import nnx

from rmt_jax.models.cells import (
    CELLS,
    MemoryCell,
    new_memory_tokens,
    repeat_for_texts,
)
from rmt_jax.types import WeightInfo


@dataclass(frozen=True)
class Options:
    """Settings of its own: config.model.cell_options."""

    keep: float = 0.5  # share of the old memory


@CELLS.register("average")
class ExponentialAverage(MemoryCell):
    reads = writes = True
    not_diagonal = "its last layer's output of one segment enters the first layer of the next"
    Options = Options

    def __init__(self, config, backbone, rngs):
        super().__init__(config, backbone, rngs)
        self.keep = self.options(config).keep
        self.start = new_memory_tokens((config.memory_tokens, config.width), backbone, rngs)
        self.gain = nnx.Param(self.start[...][:, :1] * 0 + 1)

    def initial_state(self, batch):
        return repeat_for_texts(self.start[...], batch)

    def token_embeddings(self, memory):
        return memory.state * self.gain[...]

    def next_state(self, state, x, memory_places, backbone):
        seen = backbone.final_norm(x[:, -memory_places:])
        return self.keep * state + (1 - self.keep) * seen

    def weights(self):
        return {name: WeightInfo((None, None), exact=True) for name in ("start", "gain")}
