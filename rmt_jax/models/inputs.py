"""Arrays that a user hands to a model, checked: what is wrong is a sentence."""

import numpy as np

from rmt_jax.errors import ConfigError
from rmt_jax.models.cells import Memory
from rmt_jax.types import Array


class InputError(ConfigError):
    """Tokens, masks or a memory that this model can't take; the message is a sentence."""


def check_tokens(vocab: int, tokens: Array, mask: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Token ids i32[B, n] and their mask bool[B, n], on the host, of what a user gives. Raises
    InputError."""
    ids = np.asarray(tokens)
    if ids.ndim not in (2, 3) or ids.dtype.kind not in "iu":
        raise InputError(
            f"Tokens are whole numbers in [texts, tokens], but this is {ids.dtype}"
            f"{list(ids.shape)}; one text is [1, n]."
        )
    ids = ids.reshape(len(ids), -1)
    known = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
    known = known.reshape(len(known), -1)
    if known.shape != ids.shape:
        raise InputError(f"The mask is {list(known.shape)}, but tokens are {list(ids.shape)}.")
    if not ids.size:
        raise InputError("There are no tokens to read.")
    if ids.min() < 0 or ids.max() >= vocab:
        raise InputError(
            f"Token ids run from {ids.min()} to {ids.max()}, but the vocabulary has "
            f"{vocab:,}; another model's tokenizer?"
        )
    return ids.astype(np.int32), known


def check_batch(memory: Memory, batch: int) -> None:
    """Raises InputError where a memory is of another number of texts."""
    if memory.started.shape != (batch,):
        raise InputError(
            f"The memory is for {memory.started.shape[0]} texts, but tokens hold {batch}."
        )
