"""What the model is told about its task: the tokens of the prompt."""

import numpy as np

from rmt_jax import config
from rmt_jax.data.tasks import babi
from rmt_jax.data.tokenizer import Tokenizer


def text(source: str, task: str, question: str, description: str | None = None) -> str:
    """The prompt as words; '' for the sources none and learned. `description` replaces the task
    table's (paraphrased, missing or wrong descriptions)."""
    told = babi.task(task).description if description is None else description
    if source == "question":
        return question
    if source == "description":
        return told
    if source == "both":
        return f"{told} {question}".strip()
    if source in ("none", "learned"):
        return ""
    known = config.describe(config.Prompt, "source").choices
    raise ValueError(f"Unknown prompt source {source!r}: {', '.join(known)}.")


def ids(
    prompt: config.Prompt,
    tokenizer: Tokenizer,
    task: str,
    question: str,
    description: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(i32[P] right-padded, bool[P]). A learned prompt has no tokens and all of its places.

    Raises ValueError when the prompt does not fit in P tokens.
    """
    told = text(prompt.source, task, question, description)
    found = tokenizer.sentence(told) if told else ()
    if len(found) > prompt.tokens:
        raise ValueError(
            f"The prompt {told!r} has {len(found)} tokens, but config.prompt.tokens leaves room "
            f"for {prompt.tokens}: raise it to {len(found)}."
        )
    tokens = np.full(prompt.tokens, tokenizer.pad, np.int32)
    tokens[: len(found)] = found
    mask = np.arange(prompt.tokens) < len(found)
    return tokens, mask | (prompt.source == "learned")
