"""What only a GPU can show: run `python tests/gpu_check.py` on a machine that has one.

Gradients of a train step by the fused kernel and by the diagonal schedule, both in bfloat16,
against exact float32: they may be half again as far off as plain products in bfloat16 are. Other
tokens behind the padding may change loss and gradient by rounding alone: a GPU adds up in an order
of its own each time. Ends with 1 if a difference is too large.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from rmt_jax import config, models
from rmt_jax.models.schedule import answers
from tests import tiny

LENGTH, SEGMENTS, TEXTS = 57, 3, 4  # an even number of places with prompt and memory: cuDNN's
MOST = 1.5
ROUNDING = 2e-3  # of the gradient; a token that is seen changes it by more than a tenth


def batch(noise: int):
    """Texts with ragged segments; what stands behind the mask is drawn from `noise`."""
    made = tiny.batch(SEGMENTS, texts=TEXTS)
    rng, other = np.random.default_rng(0), np.random.default_rng(noise)
    tokens = rng.integers(0, tiny.VOCAB, (TEXTS, SEGMENTS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < rng.integers(20, LENGTH, (TEXTS, SEGMENTS, 1))
    mask[1, 1] = False  # a segment without a token
    hidden = other.integers(0, tiny.VOCAB, tokens.shape).astype(np.int32)
    return made._replace(tokens=np.where(mask, tokens, hidden), mask=mask)


def gradients(cell: str, noise: int = 0, **changes):
    """Loss and the gradient, all weights as one vector."""
    changes = dict(width=128, heads=2, max_positions=128, segment_tokens=LENGTH, d_mem=16) | changes
    told = config.Prompt("question", "every", tiny.WORDS)
    graph, params = tiny.model(told, cell=cell, memory_tokens=4, scan_layers=False, **changes)
    texts = batch(noise)

    def loss(params):
        logits = answers(models.merge(graph, params), texts, bptt=0, remat=False)[0]
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    value, found = jax.jit(jax.value_and_grad(loss))(params)
    flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found)]
    return float(value), np.concatenate(flat)


def main() -> None:
    if jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; the other tests need none.")
    failed = False
    for cell in ("none", "rmt", "prmt", "armt", "delta"):
        with jax.default_matmul_precision("highest"):
            value, exact = gradients(cell, dtype="float32", attention="xla")

        def off(found: np.ndarray, exact=exact) -> float:
            return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

        allowed = MOST * off(gradients(cell, dtype="bfloat16", attention="xla")[1])
        for schedule in ("sequential", "diagonal")[: 1 + (cell in ("prmt", "armt"))]:
            ours, found = gradients(cell, dtype="bfloat16", schedule=schedule)
            other, padded = gradients(cell, noise=9, dtype="bfloat16", schedule=schedule)
            moved = float(np.linalg.norm(padded - found) / np.linalg.norm(found))
            bad = not off(found) < allowed or not moved < ROUNDING or not abs(other - ours) < 1e-5
            failed |= bad
            print(
                f"{cell}, {schedule}: loss {ours:.5f} ({value:.5f}), gradient off by"
                f" {off(found):.1e} ({allowed:.1e} allowed); other padding moves the loss by"
                f" {abs(other - ours):.1e}, the gradient by {moved:.1e}"
                f"{': TOO MUCH' if bad else ''}",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
