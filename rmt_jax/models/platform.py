"""The platform that programs are traced for, asked in this one place.

It is JAX's default backend, unless a program is traced for another machine's compiler
(`compiling_for`). What depends on it: the compute dtype under `auto`, which attention and kernels
serve, what a loop over segments keeps, whether few segments stand outside the loop, and whether
those that are answered have a loop of their own.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")

_MESH: contextvars.ContextVar[Any] = contextvars.ContextVar("mesh", default=None)


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


def mesh() -> jax.sharding.Mesh | None:
    """The mesh whose devices share the arrays of what is traced here, if that was said."""
    return _MESH.get()


def sharers() -> int:
    """How many devices share the texts of an array that is traced here: those along `fsdp`, where
    the compiler splits it. Along `data` a device traces its own texts alone."""
    spread = mesh()
    return 1 if spread is None else spread.shape["fsdp"]


@contextlib.contextmanager
def spread_over(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
    """Programs that this thread traces inside are spread over `mesh`. A kernel that the compiler
    cannot split asks for it (`ops.splash`), and the loss, for the logits that a device may hold."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)
