"""The text of an answer as its tokens are made."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

UNFINISHED = "\ufffd"  # a letter of which some bytes are still to come


def text_pieces(
    tokenizer: Any, tokens: Iterable[int], ends: Sequence[int], stops: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces that, joined, are the text before the first of the tokens `ends` and before the first
    of the texts `stops`, without white space around.

    What may still become part of a stop text, of white space at the end or of a letter of several
    bytes is kept back until it is known. No token is asked for after the end is known.
    """
    ids: list[int] = []
    shown, text = 0, ""
    for token in tokens:
        if token in ends:
            break
        ids.append(token)
        text = tokenizer.decode(ids).lstrip()
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            text = text[: min(found)]
            break
        sure = _sure(text, stops)
        if sure > shown:
            yield text[shown:sure]
            shown = sure
    if rest := text[shown:].rstrip():
        yield rest


def _sure(text: str, stops: Sequence[str]) -> int:
    """How many letters of a text stay, whatever follows."""
    kept = len(text.rstrip(UNFINISHED).rstrip())
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                kept = min(kept, len(text[: len(text) - size].rstrip()))
                break
    return kept
