"""The platform that programs are traced for, asked in this one place.

It is JAX's default backend, unless a program is traced for another machine's compiler
(`compiling_for`). What depends on it: the compute dtype under `auto`, which attention and kernels
serve, what a loop over segments keeps, and whether few segments stand outside the loop.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def current() -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Programs that this thread traces inside are for `platform`, whatever this machine has."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
