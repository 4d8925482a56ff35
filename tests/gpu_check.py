"""What only a GPU can show: run `python tests/gpu_check.py [CELL ...]` on a machine that has one.

Gradients of a train step by the fused kernels (cuDNN's, and ours where `jax-triton` is installed)
and by the diagonal schedule, both in bfloat16, against exact float32 without them: they may be half
again as far off as plain products in bfloat16 are. Other tokens behind the padding may move the
gradient no further than the same call does when it comes again (a GPU adds up in an order of its
own each time; a tenth further passes, since such distances are all alike), and the loss not at all.
Ends with 1 if something moved further.
"""

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from rmt_jax import config, models
from rmt_jax.models.ops import kernels
from rmt_jax.models.schedule import answers
from tests import tiny

LENGTH, SEGMENTS, TEXTS = 57, 3, 4  # an even number of places with prompt and memory: cuDNN's
MOST = 1.5
CALLS = 5  # of which two that differ most say how far the same call moves


def batch(noise: int):
    """Texts with ragged segments; what stands behind the mask is drawn from `noise`."""
    made = tiny.batch(SEGMENTS, texts=TEXTS)
    rng, other = np.random.default_rng(0), np.random.default_rng(noise)
    tokens = rng.integers(0, tiny.VOCAB, (TEXTS, SEGMENTS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < rng.integers(20, LENGTH, (TEXTS, SEGMENTS, 1))
    mask[1, 1] = False  # a segment without a token
    hidden = other.integers(0, tiny.VOCAB, tokens.shape).astype(np.int32)
    return made._replace(tokens=np.where(mask, tokens, hidden), mask=mask)


def gradients(cell: str, fused: bool = True, **changes):
    """A function from a batch to the loss and its gradient, all weights as one vector."""
    if not fused:
        changes["attention"] = "xla"
    changes = dict(width=128, heads=2, max_positions=128, segment_tokens=LENGTH, d_mem=16) | changes
    told = config.Prompt("question", "every", tiny.WORDS)
    graph, params = tiny.model(told, cell=cell, memory_tokens=4, **changes)

    def loss(params, texts):
        logits = answers(models.merge(graph, params), texts, bptt=0, remat=False).logits
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    program = jax.jit(jax.value_and_grad(loss))

    def call(texts):
        with mock.patch.object(kernels, "ready", kernels.ready if fused else lambda x: False):
            value, found = program(params, texts)
        flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found)]
        return float(value), np.concatenate(flat)

    return call


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    if jax.default_backend() != "gpu":
        sys.exit("JAX finds no GPU here; the other tests need none.")
    failed, texts, padded = False, batch(0), batch(9)
    kernels.LEAST = 0  # on these few rows too
    ours = kernels.ready(jax.numpy.zeros((1, 128)))
    print(f"{jax.devices()[0].device_kind}, own kernels {'' if ours else 'NOT '}there", flush=True)
    for cell in sys.argv[1:] or tiny.CELLS:
        with jax.default_matmul_precision("highest"):
            value, exact = gradients(cell, False, dtype="float32")(texts)
        plain = gradients(cell, False, dtype="bfloat16")(texts)[1]
        allowed = MOST * apart(plain, exact)
        for schedule in ("sequential", "diagonal")[: 1 + (cell in ("prmt", "armt"))]:
            call = gradients(cell, dtype="bfloat16", schedule=schedule)
            same = [call(texts) for _ in range(CALLS)]
            other, moved = call(padded)
            off = apart(same[0][1], exact)
            again = max(apart(a, b) for _, a in same for _, b in same)
            nearest = min(apart(moved, found) for _, found in same)
            bad = (
                not off < allowed
                or nearest > 1.1 * again
                or other not in {loss for loss, _ in same}
            )
            failed |= bad
            print(
                f"{cell}, {schedule}: loss {same[0][0]:.5f} ({value:.5f}), gradient off by"
                f" {off:.1e} ({allowed:.1e} allowed); other padding moves the loss by"
                f" {abs(other - same[0][0]):.1e}, the gradient by {nearest:.1e}"
                f" ({again:.1e} from call to call){': TOO MUCH' if bad else ''}",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
