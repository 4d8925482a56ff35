"""From sums to the figures that people read."""

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.types import Sums


def zeros(rows: int) -> Sums:
    return Sums(*(jnp.zeros(rows, jnp.float32) for _ in Sums._fields))


def add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(lambda x, y: x + y, a, b)


def means(sums: Sums, tasks: tuple[str, ...]) -> dict:
    """`{"loss": nats a token, "accuracy": {task: fraction}, "auxiliary": fraction}`.

    A task that no question of was seen has no entry: a mean of nothing is not a number.
    """
    host = Sums(*(np.asarray(x, np.float64) for x in sums))
    accuracy = {
        name: float(host.right[row] / host.count[row])
        for row, name in enumerate((*tasks, "auxiliary"))
        if host.count[row] > 0
    }
    out: dict = {"loss": float(host.loss.sum() / max(host.weight.sum(), 1e-9))}
    if "auxiliary" in accuracy:
        out["auxiliary"] = accuracy.pop("auxiliary")
    return out | {"accuracy": accuracy}
