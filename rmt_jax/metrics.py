"""From sums to the figures that people read."""

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.shapes import Sums


def zeros(rows: int) -> Sums:
    return Sums(*(jnp.zeros(rows, jnp.float32) for _ in Sums._fields))


def add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(lambda x, y: x + y, a, b)


def means(sums: Sums, tasks: tuple[str, ...]) -> dict[str, float]:
    """Mean loss a token, and accuracy a task (`auxiliary` for the questions in between).

    A task that no question of was seen has no entry: a mean of nothing is not a number.
    """
    host = Sums(*(np.asarray(x, np.float64) for x in sums))
    out = {"loss": float(host.loss.sum() / max(host.weight.sum(), 1e-9))}
    for row, name in enumerate((*tasks, "auxiliary")):
        if host.count[row] > 0:
            out[f"accuracy/{name}"] = float(host.right[row] / host.count[row])
    return out
