"""The operations that a transformer block is written with, in plain JAX.

`BlockOps` holds those that stand between a layer's products. `PLAIN` is what they mean; on an
NVIDIA GPU `kernels.block_ops` may give the same in fewer passes over memory. A block asks there
once, and nowhere else.

Some gradients are written by hand, since what JAX derives keeps more or is slower
(benchmarks/RESULTS.md for CPUs, H200.md). Each gives the value of the plain expression.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmt_jax.models import platform

EPSILON = 1e-5  # of every LayerNorm, as in GPT-2
CUBIC, ROOT = 0.044715, 0.7978845608028654  # of gelu; the second is sqrt(2 / pi)


class BlockOps(NamedTuple):
    """Operations between the products of a pre-norm block; every vector is f32[D]."""

    # (x [..., D], scale, bias) -> x, layer_norm(x)
    prenorm: Callable[..., tuple[jax.Array, jax.Array]]
    # (x, change [..., D], shift, scale, bias) -> total = x + change + shift, layer_norm(total)
    add_layer_norm: Callable[..., tuple[jax.Array, jax.Array]]
    # (x [..., D], shift) -> gelu(x + shift)
    bias_gelu: Callable[..., jax.Array]
    # (x [..., 3 D], shift) -> three parts [..., D] of x + shift
    split_qkv: Callable[..., list[jax.Array]]


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, E]; the kernel's gradient is one product in the kernel's own layout.

    JAX derives it transposed, and XLA's CPU backend then transposes the other factor element by
    element: a fifth of GPT-2 base's train step.
    """
    return x @ kernel


def _matmul_forward(x: jax.Array, kernel: jax.Array):
    return x @ kernel, (x, kernel)


def _matmul_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = kept
    inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, jax.lax.dot_general(inputs, outputs, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def add_bias(x: jax.Array, vector: jax.Array) -> jax.Array:
    """x [..., D] + vector [D], in the dtype of x; the vector's gradient by `sum_over_positions`."""
    vector = vector.astype(x.dtype)
    if platform.current() == "tpu":
        return _added(x, vector)
    return x + broadcast_bias(vector, x.shape)


@jax.custom_vjp
def _added(x: jax.Array, vector: jax.Array) -> jax.Array:
    # Not spread over the places first: of layers in a loop inside a loop over segments JAX would
    # do that for all layers before both, and every layer then reads it from memory (GPT-2 base on
    # a TPU: 0.7 GB held, a fifth of the bytes of a train step).
    return x + vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _added_forward(x: jax.Array, vector: jax.Array):
    return _added(x, vector), None


def _added_backward(_: None, gradient: jax.Array):
    return gradient, sum_over_positions(gradient)[0].astype(gradient.dtype)


_added.defvjp(_added_forward, _added_backward)


def broadcast_bias(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[D] broadcast to [..., D]; its gradient by `sum_over_positions`."""
    return _broadcast(vector, shape)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _broadcast(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


def _broadcast_forward(vector: jax.Array, shape: tuple[int, ...]):
    return jnp.broadcast_to(vector, shape), None


def _broadcast_backward(shape: tuple[int, ...], _: None, gradient: jax.Array):
    return (sum_over_positions(gradient)[0].astype(gradient.dtype),)


_broadcast.defvjp(_broadcast_forward, _broadcast_backward)


def sum_over_positions(*arrays: jax.Array) -> list[jax.Array]:
    """Each [..., D] summed to [D], in float32.

    On a CPU as products with ones: XLA sums columns on one core. On a GPU in two steps with a
    barrier between: as one sum, XLA first writes what it sums to memory, in float32.
    """
    flat = [x.reshape(-1, x.shape[-1]) for x in arrays]
    if platform.current() == "cpu":
        return [(jnp.ones((1, len(x)), x.dtype) @ x)[0].astype(jnp.float32) for x in flat]
    count = len(flat[0])
    stretch = next((n for n in (256, 128, 64, 32, 16) if count % n == 0), None)
    if stretch is None:
        return [x.sum(axis=0, dtype=jnp.float32) for x in flat]
    parts = [x.reshape(count // stretch, stretch, -1).sum(axis=1, dtype=jnp.float32) for x in flat]
    return [x.sum(axis=0) for x in jax.lax.optimization_barrier(parts)]


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis (Ba et al. 2016), in float32; the result has the dtype of x.

    x [..., D]; scale, bias f32[D]. Keeps x and two numbers per place, where JAX keeps two arrays
    as large as x in float32.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    exact = x.astype(jnp.float32)
    mean = exact.mean(axis=-1, keepdims=True)
    exact = exact - mean
    slope = jax.lax.rsqrt(jnp.square(exact).mean(axis=-1, keepdims=True) + EPSILON)
    y = (exact * slope * scale + bias).astype(x.dtype)
    # The barrier has them stored; else the backward pass finds them anew, once for each use.
    return y, (x, *jax.lax.optimization_barrier((mean, slope)), scale)


def _layer_norm_backward(kept: tuple[jax.Array, ...], gradient: jax.Array):
    x, mean, slope, scale = kept
    normal = (x.astype(jnp.float32) - mean) * slope
    gradient = gradient.astype(jnp.float32)
    inner = gradient * scale
    along = (inner * normal).mean(axis=-1, keepdims=True)
    back = slope * (inner - inner.mean(axis=-1, keepdims=True) - normal * along)
    return (back.astype(x.dtype), *sum_over_positions(gradient * normal, gradient))


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GPT-2's gelu, by tanh (Hendrycks and Gimpel 2016). Keeps x alone, where JAX keeps four."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x: jax.Array):
    return jax.nn.gelu(x, approximate=True), x


def _gelu_backward(x: jax.Array, gradient: jax.Array):
    exact = x.astype(jnp.float32)
    square = jnp.square(exact)
    bent = jnp.tanh(ROOT * exact * (1 + CUBIC * square))
    steep = ROOT * exact * (1 - jnp.square(bent)) * (1 + 3 * CUBIC * square)
    slope = 0.5 * (1 + bent + steep)
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _prenorm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, layer_norm(x, scale, bias)


def _add_layer_norm(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    total = x + add_bias(change, shift)
    return total, layer_norm(total, scale, bias)


def _bias_gelu(x: jax.Array, shift: jax.Array) -> jax.Array:
    return gelu(add_bias(x, shift))


def _split_qkv(x: jax.Array, shift: jax.Array) -> list[jax.Array]:
    # Not by index: the gradient of that is three arrays as large as all three, added up.
    return jnp.split(add_bias(x, shift), 3, axis=-1)


PLAIN = BlockOps(_prenorm, _add_layer_norm, _bias_gelu, _split_qkv)
