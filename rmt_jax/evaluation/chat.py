"""A tokenizer's chat template around a text and a question about it.

The text is read in a stream, so the template is filled with two marks and cut there. What comes out
are the tokens of `apply_chat_template` for one message: the text, an empty line, the question.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.data.corpus.pieces import GAP
from rmt_jax.errors import RmtError

TEMPLATE = "chat_template.jinja"
TEXT, QUESTION = "<<the text>>", "<<the question>>"
WORD = 64  # letters: what is longer without a gap is no word that a token could span
ROOM = 256  # tokens of the longest answer, where nothing else is said
SENTENCE = 32  # tokens of the longest answer to a task's question, which is a sentence in a chat


class ChatError(RmtError):
    """A chat that this model can't have; the message is a sentence for the user."""


class Chat(NamedTuple):
    """What stands around a text and a question."""

    before: str  # the text
    after: str  # the question, up to where the answer begins

    def question(self, asked: str) -> str:
        """What follows a text that `asked` is asked about."""
        return f"\n\n{asked.strip()}{self.after}"

    def split(self, pieces: Iterator[str]) -> Iterator[str]:
        """The text in `pieces`, white space around it left out, with what stands before it; the
        last part alone is its last words: they may share a token with what follows."""
        held, begun = self.before, False
        for piece in pieces:
            held, begun = held + (piece if begun else piece.lstrip()), begun or not piece.isspace()
            cut = _last_gap(held)
            if len(held) - cut > WORD:  # a writing without spaces
                cut = max(cut, len(held) - 1)
            if cut:
                yield held[:cut]
                held = held[cut:]
        if begun:
            yield held.rstrip()

    def encoded(self, tokenizer: Any, text: str, asked: str) -> tuple[np.ndarray, np.ndarray]:
        """i32[n] of the text with what stands before it, and i32[m] of what follows."""
        *parts, last = self.split(iter((text,))) if text.strip() else (self.before,)
        ids = [token for part in parts for token in tokenizer.encode(part)]
        after = tokenizer.encode(last + self.question(asked))
        return np.asarray(ids, np.int32), np.asarray(after, np.int32)


def chat_for(model: Any, wanted: str) -> Chat | None:
    """The chat that `--chat=auto|yes|no` means; None: none. Raises ChatError."""
    untrained = model.config.prompt.source == "none" and not model.config.data.tasks
    if wanted == "no" or wanted == "auto" and not (untrained and template_of(model)[0]):
        return None
    return chat_of(model)


def chat_of(model: Any) -> Chat:
    """The chat of the template that lies beside a model's tokenizer. Raises ChatError."""
    template, named = template_of(model)
    if not template:
        raise ChatError(
            f"The tokenizer of {model.folder or 'this model'} has no chat template"
            f" (tokenizer_config.json, {TEMPLATE}): leave --chat out."
        )
    try:
        from transformers import PreTrainedTokenizerFast

        whole = PreTrainedTokenizerFast(
            tokenizer_object=model.tokenizer.inner, chat_template=template, **named
        )
        message = [{"role": "user", "content": f"{TEXT}\n\n{QUESTION}"}]
        filled = whole.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except ImportError as error:
        raise ChatError(
            f"Chat templates need jinja2 ({error}): pip install 'rmt_jax[chat]'."
        ) from error
    except Exception as error:  # a template is a program of others
        raise ChatError(
            f"The chat template of {model.folder} can't be filled ({error}): leave --chat out."
        ) from error
    before, text, rest = str(filled).partition(f"{TEXT}\n\n")
    _, question, after = rest.partition(QUESTION)
    if not (text and question):
        raise ChatError(
            f"The chat template of {model.folder} changes or leaves out what a user says, so that a"
            " text can't be read with it: leave --chat out."
        )
    return Chat(before, after)


def template_of(model: Any) -> tuple[str, dict[str, str]]:
    """The template, '' where there is none, and the tokens that it may name."""
    from rmt_jax.data import gguf_tokenizer

    said = gguf_tokenizer.hub_config(model.gguf_tokenizer) if model.gguf_tokenizer else {}
    for folder in filter(None, (model.folder and model.folder / "tokenizer", model.folder)):
        if said:
            break
        said = _said(folder)
    template = said.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), "")
    named = {role: _text(said.get(role)) for role in ("bos_token", "eos_token", "pad_token")}
    return template, {role: token for role, token in named.items() if token}


def _last_gap(text: str) -> int:
    """Where the last word begins, with the space before it; 0 where there is one word."""
    place = text.rfind(" ")
    while place > 0 and not GAP.match(text, place):
        place = text.rfind(" ", 0, place)
    return max(place, 0)


def _said(folder: Path) -> dict[str, Any]:
    file, alone = folder / "tokenizer_config.json", folder / TEMPLATE
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if alone.is_file():
        said["chat_template"] = alone.read_text(encoding="utf-8")
    return said


def _text(token: Any) -> str:
    """Written as a text, or as an object with its text and how it is matched."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
