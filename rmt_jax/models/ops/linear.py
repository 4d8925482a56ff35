"""Linear maps of all layers in one array."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax.models.ops.block import add_bias, matmul
from rmt_jax.models.ops.draw import normal


class Linear(nnx.Module):
    """`layers` linear or affine maps, drawn normal with deviation `std`, their biases zero.

    Kernel [layers, inputs, outputs], the layout of HF's Conv1D; torch's Linear has the transpose.
    """

    def __init__(
        self,
        layers: int,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        std: float,
        bias: bool = True,
    ):
        # What is added to the product, of one layer: `models.lora` puts it here.
        self.adapter: Callable[[jax.Array], jax.Array] | None = None
        shape = (layers, inputs, outputs)
        self.kernel = nnx.Param(normal(rngs, shape, std))
        if bias:
            self.bias = nnx.Param(jnp.zeros((layers, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Inside a layer: kernel [inputs, outputs]; computed in the dtype of `x`."""
        y = self.linear(x)
        if not hasattr(self, "bias"):
            return y
        return add_bias(y, self.bias[...])

    def linear(self, x: jax.Array) -> jax.Array:
        """Without the bias."""
        y = matmul(x, self.kernel[...].astype(x.dtype))
        return y if self.adapter is None else y + self.adapter(x)
