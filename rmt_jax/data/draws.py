"""What synthetic tasks draw: symbols, numbers, identifiers; and draws that keep to a split."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from rmt_jax.data import words
from rmt_jax.data.corpus import documents
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng

Drawn = TypeVar("Drawn")
ATTEMPTS = 1000  # a tenth of all draws belong to validation, a tenth to test
LETTERS = "abcdefghijklmnoprstuvwyz"  # each one token of the built-in tokenizer


@cache
def symbols(count: int) -> tuple[str, ...]:
    """Letters, then common words: each one token of the built-in tokenizer. Raises DataError for
    more than there are."""
    known = (*LETTERS, *words.common("objects"))
    if count > len(known):
        raise DataError(
            f"There are {len(known):,} symbols, not {count:,}: make keys or values of several"
            " symbols each."
        )
    return known[:count]


def number(rng: AddressedRng, digits: int = 7) -> str:
    """A number of so many digits, the first not 0."""
    return str(rng.between(10 ** (digits - 1), 10**digits - 1))


def hexadecimal(rng: AddressedRng, count: int, digits: int = 32) -> list[str]:
    """`count` numbers of `digits` hexadecimal digits; of 32 as random UUIDs (RFC 9562, version
    4)."""
    text = rng.numpy.bytes(count * digits).hex()  # twice what is needed
    found = [text[i * digits : (i + 1) * digits] for i in range(count)]
    return [uuid(one) for one in found] if digits == 32 else found


def uuid(digits: str) -> str:
    """32 hexadecimal digits as a UUID of version 4: two of them say so."""
    variant = "89ab"[int(digits[16], 16) % 4]
    digits = f"{digits[:12]}4{digits[13:16]}{variant}{digits[17:]}"
    ends = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in zip(ends, ends[1:], strict=False))


def distinct(draw: Callable[[], str], count: int, taken: Sequence[str] = ()) -> list[str]:
    """`count` different texts, none of them among those taken."""
    found: dict[str, None] = dict.fromkeys(taken)
    while len(found) < count + len(taken):
        found[draw()] = None
    return list(found)[len(taken) :]


def of_split(
    split: str, draw: Callable[[int], Drawn], key: Callable[[Drawn], Sequence[str]]
) -> Drawn:
    """The first of draw(0), draw(1), ... that belongs to a split by the hash of its `key`, texts
    that it alone has: whatever is drawn belongs to one split, so that none is in two of them.

    Raises DataError where none of ATTEMPTS draws does.
    """
    for attempt in range(ATTEMPTS):
        drawn = draw(attempt)
        if documents.split_of_story(tuple(key(drawn))) == split:
            return drawn
    raise DataError(
        f"None of {ATTEMPTS} texts belongs to the {split} split: with these options of the task"
        " there are too few different ones. Give it more symbols, or longer texts."
    )
