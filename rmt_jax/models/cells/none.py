"""No memory: the plain backbone on each segment, a baseline."""

from rmt_jax.models.cells import CELLS, MemoryCell


@CELLS.register("none")
class NoMemory(MemoryCell):
    """Every segment for itself."""

    wrapped = False
