"""From sums to the figures that people read."""

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.types import Sums


def zeros(rows: int, language: bool = False) -> Sums:
    """`language`: does a task of the run model one?"""
    empty = [jnp.zeros(rows, jnp.float32) for _ in range(4)]
    return Sums(*empty, texts=jnp.zeros(rows, jnp.float32) if language else None)


def add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(lambda x, y: x + y, a, b)


def means(sums: Sums, tasks: tuple[str, ...]) -> dict:
    """`{"loss": nats a token, "accuracy": {task: fraction}, "auxiliary": fraction}`, and
    `"nats_per_token": {task: nats}` of those that model a language; then the loss is the mean of
    both kinds, by their texts (`losses.scales`).

    A task of which nothing was seen has no entry: a mean of nothing is not a number.
    """
    host = Sums(*(None if x is None else np.asarray(x, np.float64) for x in sums))
    accuracy = {
        name: float(host.right[row] / host.count[row])
        for row, name in enumerate((*tasks, "auxiliary"))
        if host.count[row] > 0
    }
    out: dict = {"loss": float(_mean(host, slice(None)))}
    if host.texts is not None:
        told = (host.weight > 0) & (host.count == 0)
        share = host.texts[told].sum() / max(host.texts.sum(), 1)
        out["loss"] = float(share * _mean(host, told) + (1 - share) * _mean(host, ~told))
        out["nats_per_token"] = {
            name: float(host.loss[row] / host.weight[row])
            for row, name in enumerate(tasks)
            if told[row]
        }
    if "auxiliary" in accuracy:
        out["auxiliary"] = accuracy.pop("auxiliary")
    return out | {"accuracy": accuracy}


def _mean(sums: Sums, rows: slice | np.ndarray) -> float:
    return sums.loss[rows].sum() / max(sums.weight[rows].sum(), 1e-9)
