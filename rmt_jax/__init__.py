"""Recurrent Memory Transformer in JAX.

    import rmt_jax
    model = rmt_jax.load("FOLDER_OR_HUB_NAME")

See `rmt_jax.api` for what a model can do. JAX itself is imported at the first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmt_jax.api import load

__all__ = ["load"]


def __getattr__(name: str):
    if name == "load":
        from rmt_jax.api import load

        return load
    raise AttributeError(f"module 'rmt_jax' has no attribute {name!r}")
