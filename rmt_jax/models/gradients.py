"""Operations whose gradients are written by hand: what JAX derives keeps more, or is slower.

Each gives the value of the plain expression. Measured in benchmarks/RESULTS.md (CPU) and H200.md.
"""

from functools import partial

import jax
import jax.numpy as jnp

EPSILON = 1e-5  # of every LayerNorm, as in GPT-2
CUBIC, ROOT = 0.044715, 0.7978845608028654  # of gelu; the second is sqrt(2 / pi)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, E]; the kernel's gradient as one product that lies as it does.

    JAX's own gradient of it lies across. To turn it, XLA's CPU backend wrote the other factor down
    across, element by element, with all that it was the sum of: a fifth of GPT-2 base's train step.
    """
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array):
    return x @ kernel, (x, kernel)


def _product_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = kept
    inputs, outputs = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, jax.lax.dot_general(inputs, outputs, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


def spread(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[D] broadcast to [..., D]; its gradient by `over_places`."""
    return _spread(vector, shape)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _spread(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


def _spread_forward(vector: jax.Array, shape: tuple[int, ...]):
    return jnp.broadcast_to(vector, shape), None


def _spread_backward(shape: tuple[int, ...], _: None, gradient: jax.Array):
    return (over_places(gradient)[0].astype(gradient.dtype),)


_spread.defvjp(_spread_forward, _spread_backward)


def over_places(*arrays: jax.Array) -> list[jax.Array]:
    """Each [..., D] summed to [D], in float32.

    On a CPU as products with ones: XLA sums columns on one core. On a GPU in two steps with a
    barrier between: as one sum, XLA wrote what it sums down first, in float32.
    """
    places = [x.reshape(-1, x.shape[-1]) for x in arrays]
    if jax.default_backend() == "cpu":
        return [(jnp.ones((1, len(x)), x.dtype) @ x)[0].astype(jnp.float32) for x in places]
    count = len(places[0])
    stretch = next((n for n in (256, 128, 64, 32, 16) if count % n == 0), None)
    if stretch is None:
        return [x.sum(axis=0, dtype=jnp.float32) for x in places]
    parts = [
        x.reshape(count // stretch, stretch, -1).sum(axis=1, dtype=jnp.float32) for x in places
    ]
    return [x.sum(axis=0) for x in jax.lax.optimization_barrier(parts)]


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis (Ba et al. 2016), in float32; the result has the dtype of x.

    x [..., D]; scale, bias f32[D]. Keeps x and two numbers a place, where JAX keeps two arrays as
    large as x in float32.
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    exact = x.astype(jnp.float32)
    mean = exact.mean(axis=-1, keepdims=True)
    exact = exact - mean
    slope = jax.lax.rsqrt(jnp.square(exact).mean(axis=-1, keepdims=True) + EPSILON)
    y = (exact * slope * scale + bias).astype(x.dtype)
    # The barrier has them stored; else the backward pass finds them anew, once for each use.
    return y, (x, *jax.lax.optimization_barrier((mean, slope)), scale)


def _normalise_backward(kept: tuple[jax.Array, ...], gradient: jax.Array):
    x, mean, slope, scale = kept
    normal = (x.astype(jnp.float32) - mean) * slope
    gradient = gradient.astype(jnp.float32)
    inner = gradient * scale
    along = (inner * normal).mean(axis=-1, keepdims=True)
    back = slope * (inner - inner.mean(axis=-1, keepdims=True) - normal * along)
    return (back.astype(x.dtype), *over_places(gradient * normal, gradient))


normalise.defvjp(_normalise_forward, _normalise_backward)


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


def rows(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [B, N, ...] at places i32[B, n] -> [B, n, ...]."""
    return jax.vmap(lambda row, index: row[index])(x, places)


@jax.custom_vjp
def permuted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """`rows` at all places in another order, i32[B, N] with its inverse; its gradient is the way
    back, where that of `rows` adds up."""
    return rows(x, order)


def _permuted_forward(x: jax.Array, order: jax.Array, inverse: jax.Array):
    return rows(x, order), inverse


def _permuted_backward(inverse: jax.Array, gradient: jax.Array):
    return rows(gradient, inverse), None, None


permuted.defvjp(_permuted_forward, _permuted_backward)
