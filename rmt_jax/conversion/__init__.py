"""Checkpoints in and out: what `python -m rmt_jax.convert` does.

`importing` makes a workdir of others' weights, `exporting` a folder in their layout of a run, with
a model card (`card`), `publishing` puts it on the hub, `mean` adds up the weights of runs, `deepen`
gives a model more layers, and `new_memory` another memory cell.
"""

from rmt_jax.conversion.deepen import deepen
from rmt_jax.conversion.exporting import export_adapter, export_weights
from rmt_jax.conversion.importing import import_weights
from rmt_jax.conversion.mean import mean_weights, shares
from rmt_jax.conversion.new_memory import new_memory

__all__ = [
    "deepen",
    "export_adapter",
    "export_weights",
    "import_weights",
    "mean_weights",
    "new_memory",
    "shares",
]
