"""The task prompt: what a model reads about its task, in words and as tokens."""

import numpy as np

from rmt_jax import config
from rmt_jax.data.errors import DataError
from rmt_jax.data.tokenizer import Tokenizer


def text(source: str, description: str, question: str) -> str:
    """The prompt in words; '' for the sources none and learned."""
    if source == "question":
        return question
    if source == "description":
        return description
    if source == "both":
        return f"{description} {question}".strip()
    if source in ("none", "learned"):
        return ""
    known = config.describe(config.Prompt, "source").choices
    raise DataError(f"Unknown prompt source {source!r}: {', '.join(known)}.")


def ids(
    prompt: config.Prompt, tokenizer: Tokenizer, description: str, question: str
) -> tuple[np.ndarray, np.ndarray]:
    """(i32[P] right-padded, bool[P]). A learned prompt has no tokens and all of its places.

    Raises DataError when the prompt does not fit in P tokens.
    """
    words = text(prompt.source, description, question)
    found = tokenizer.sentence(words) if words else ()
    if len(found) > prompt.tokens:
        raise DataError(
            f"The prompt {words!r} has {len(found)} tokens, but config.prompt.tokens leaves room "
            f"for {prompt.tokens}: raise it to {len(found)}."
        )
    tokens = np.full(prompt.tokens, tokenizer.pad, np.int32)
    tokens[: len(found)] = found
    mask = np.arange(prompt.tokens) < len(found)
    return tokens, mask | (prompt.source == "learned")
