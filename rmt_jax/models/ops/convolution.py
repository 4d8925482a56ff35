"""A short causal convolution over the places of a segment."""

import jax
import jax.numpy as jnp


def causal_convolution(kernel: jax.Array, inputs: jax.Array, before: jax.Array) -> jax.Array:
    """Causal depthwise convolution as a sum of shifted copies.

    kernel [W, D], kernel[j] weighs the token j places back; inputs [B, N, D]; before [B, W - 1, D]
    is what stood in front of them. Returns [B, N, D].
    """
    width, places = kernel.shape[0], inputs.shape[1]
    padded = jnp.concatenate([before, inputs], axis=1)
    shifted = (padded[:, width - 1 - j : width - 1 - j + places] for j in range(width))
    return sum(kernel[j].astype(inputs.dtype) * x for j, x in enumerate(shifted))  # pyright: ignore
