"""Tokens, masks and prompts that people hand in, checked on the host."""

import numpy as np

from rmt_jax.config import Config, ConfigError
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS, Memory
from rmt_jax.types import Array, Prompt, Segment


class InputError(ConfigError):
    """Tokens, masks or a memory that a model can't take; the message is a sentence."""


def checked_tokens(tokens: Array, mask: Array | None, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """i32[B, n] and bool[B, n] of tokens [B, n] or [B, S, L]. Raises InputError."""
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


def checked_prompt(prompt: Prompt, batch: int, vocab: int) -> Prompt:
    """The task prompt of `batch` texts. Raises InputError."""
    prompt = Prompt(np.asarray(prompt.tokens), np.asarray(prompt.mask), np.asarray(prompt.task))
    if len(prompt.tokens) != batch:
        raise InputError(
            f"The task prompt is for {len(prompt.tokens)} texts, but tokens hold {batch}."
        )
    if not prompt.tokens.size:  # a learned prompt may have none
        return prompt
    tokens, mask = checked_tokens(prompt.tokens, prompt.mask, vocab)
    return prompt._replace(tokens=tokens, mask=mask)


def check_memory(memory: Memory, batch: int) -> None:
    """Raises InputError for a memory of another number of texts."""
    if memory.started.shape != (batch,):
        raise InputError(
            f"The memory is for {memory.started.shape[0]} texts, but tokens hold {batch}."
        )


def whole_segments(ids: Array, known: Array, length: int) -> tuple[Array, Array]:
    """[B, n] as [B, S, length]. Raises InputError where n is no multiple of it."""
    if ids.shape[1] % length:
        raise InputError(
            f"read takes whole segments: {ids.shape[1]:,} tokens are no multiple of "
            f"{length:,}. Pad with a mask, or leave the rest to generate_from or forward."
        )
    return ids.reshape(len(ids), -1, length), known.reshape(len(ids), -1, length)


def head_and_tail(ids: Array, known: Array, length: int) -> tuple[Segment, Segment]:
    """Texts [B, n], padded at any side, in two: whole segments of this length, at the left, as many
    tokens as the longest text has in them; and the rest of each text, 1 to `length` tokens of
    `length` places. Raises InputError where a text is empty."""
    order = np.argsort(~known, axis=1, kind="stable")  # to the left, in their order
    ids, counts = np.take_along_axis(ids, order, axis=1), known.sum(axis=1)
    if not counts.all():
        raise InputError(f"Text {int(np.argmin(counts))} is empty; give at least one token.")
    heads = (counts - 1) // length * length
    ids = np.pad(ids, ((0, 0), (0, length)))  # so that every tail can be cut out
    whole = int(heads.max())
    places = heads[:, None] + np.arange(length)
    tail = Segment(np.take_along_axis(ids, places, axis=1), places < counts[:, None])
    return Segment(ids[:, :whole], np.arange(whole) < heads[:, None]), tail


def checked_tail(
    config: Config, tokens: Array, mask: Array | None, vocab: int, max_new_tokens: int
) -> Segment:
    """What `max_new_tokens` are to follow, of at most a segment. Raises InputError."""
    ids, known = checked_tokens(tokens, mask, vocab)
    if ids.shape[1] > config.model.segment_tokens:
        raise InputError(
            f"The last segment holds {ids.shape[1]:,} tokens, but a segment is "
            f"{config.model.segment_tokens:,}; read whole segments first, or use generate."
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1.")
    if not known.any(axis=1).all():
        raise InputError("Every text needs at least one token in its last segment.")
    most = BACKBONES[config.model.backbone].max_places(config.model)
    if most is not None:  # positions must reach to the last token that is decoded
        tail, new = int(known.sum(axis=1).max()), max_new_tokens - 1
        cell = CELLS[config.model.cell]
        front = config.model.memory_tokens if cell.reads else cell.kept_tokens(config.model)
        prompt = 0 if config.prompt.source == "none" else config.prompt.tokens
        needed = front + prompt + tail + new
        if needed > most:
            raise InputError(
                f"{front} memory + {prompt} prompt + {tail:,} tokens + {new} new = {needed:,}"
                f" positions, but the backbone has {most:,}; lower max_new_tokens."
            )
    return Segment(ids, known)


def prompt_room(config: Config) -> int:
    """The longest task prompt that a model can hold, in tokens."""
    m, room = config.model, config.prompt.tokens
    most = BACKBONES[m.backbone].max_places(m)
    if most is None:
        return max(m.segment_tokens, room)
    cell = CELLS[m.cell]
    memory = cell.token_copies() * m.memory_tokens + cell.kept_tokens(m)
    return max(min(m.segment_tokens, most - memory - m.segment_tokens), room)
