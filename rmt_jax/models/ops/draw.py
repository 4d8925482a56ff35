"""How weights are drawn."""

import jax
from flax import nnx


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: jax.Array | float = 1.0) -> jax.Array:
    """f32[shape], normal with deviation `std`.

    The same to the digit drawn alone and inside a program that draws all weights: there the
    compiler would multiply `std` into the draw's own last factor.
    """
    return std * jax.lax.optimization_barrier(jax.random.normal(rngs.params(), shape))
