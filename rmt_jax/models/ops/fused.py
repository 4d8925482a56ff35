"""Operations whose gradients are written by hand: what JAX derives keeps more, or is slower.

Each gives the value of the plain expression. Measured in benchmarks/RESULTS.md (CPU) and H200.md.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rmt_jax.models.ops import kernels

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


def beside(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, `normalise` of it): the start of a branch, whose gradient and that of x itself become one
    sum in one pass where kernels of our own serve (`kernels.ready`)."""
    return _beside(x, scale, bias) if kernels.ready(x) else (x, normalise(x, scale, bias))


@jax.custom_vjp
def _beside(x: jax.Array, scale: jax.Array, bias: jax.Array):
    return x, normalise(x, scale, bias)


def _beside_forward(x: jax.Array, scale: jax.Array, bias: jax.Array):
    y, mean, slope = kernels.normalise(x, scale, bias)
    return (x, y), (x, mean, slope, scale)


def _beside_backward(kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]):
    own, gradient = gradients
    back, *sums = kernels.normalise_gradient(*kept, gradient, own)
    return (back, *(part.sum(axis=0) for part in sums[:2]))


_beside.defvjp(_beside_forward, _beside_backward)


def after(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(the sum of x, change [..., D] and shift f32[D], `normalise` of it): the end of one branch
    and the start of the next."""
    way = _after if kernels.ready(x) else _plainly_after
    return way(x, change, shift, scale, bias)


def _plainly_after(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    total = x + (change + spread(shift.astype(x.dtype), x.shape))
    return total, normalise(total, scale, bias)


_after = jax.custom_vjp(_plainly_after)


def _after_forward(
    x: jax.Array, change: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array
):
    total, y, mean, slope = kernels.add_normalise(x, change, shift, scale, bias)
    return (total, y), (total, mean, slope, scale)


def _after_backward(kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, jax.Array]):
    own, gradient = gradients
    back, *sums = kernels.normalise_gradient(*kept, gradient, own)
    scale, bias, shift = (part.sum(axis=0) for part in sums)
    return back, back, shift, scale, bias


_after.defvjp(_after_forward, _after_backward)


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


def shifted_gelu(x: jax.Array, shift: jax.Array) -> jax.Array:
    """`gelu` of x [..., D] + shift f32[D]."""
    if kernels.ready(x):
        return _shifted_gelu(x, shift)
    return gelu(x + spread(shift.astype(x.dtype), x.shape))


@jax.custom_vjp
def _shifted_gelu(x: jax.Array, shift: jax.Array) -> jax.Array:
    return _shifted_gelu_forward(x, shift)[0]


def _shifted_gelu_forward(x: jax.Array, shift: jax.Array):
    # The sum is kept, not x: cuBLASLt adds and bends where it multiplies, and gives both.
    total = x + shift.astype(x.dtype)
    return jax.nn.gelu(total, approximate=True), total


def _shifted_gelu_backward(total: jax.Array, gradient: jax.Array):
    back, sums = kernels.gelu_gradient(total, gradient)
    return back, sums.sum(axis=0)


_shifted_gelu.defvjp(_shifted_gelu_forward, _shifted_gelu_backward)


def thirds(x: jax.Array, shift: jax.Array) -> list[jax.Array]:
    """x [..., 3 D] + shift f32[3 D] in three parts [..., D]."""
    if kernels.ready(x):
        return _thirds(x, shift)
    # Not by index: the gradient of that is three arrays as large as all three, added up.
    return jnp.split(x + spread(shift.astype(x.dtype), x.shape), 3, axis=-1)


@jax.custom_vjp
def _thirds(x: jax.Array, shift: jax.Array) -> list[jax.Array]:
    return jnp.split(x + shift.astype(x.dtype), 3, axis=-1)


def _thirds_forward(x: jax.Array, shift: jax.Array):
    return _thirds(x, shift), None


def _thirds_backward(_: None, gradients: list[jax.Array]):
    whole, sums = kernels.join(*gradients)
    return whole, sums.sum(axis=0)


_thirds.defvjp(_thirds_forward, _thirds_backward)


def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """table [R, D] at i32[...] -> [..., D]; for a table of a few thousand rows that many look at.

    On a GPU its gradient is a product with ones and zeros: a thousand places that add to the same
    row, as all texts do to the table of positions, wait for each other.
    """
    return _lookup(table, index) if jax.default_backend() == "gpu" else table[index]


@jax.custom_vjp
def _lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    return table[index]


def _lookup_forward(table: jax.Array, index: jax.Array):
    return table[index], (index, len(table))


def _lookup_backward(kept: tuple[jax.Array, int], gradient: jax.Array):
    index, count = kept
    chosen = jax.nn.one_hot(index.reshape(-1), count, axis=0, dtype=gradient.dtype)
    return chosen @ gradient.reshape(index.size, -1), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def stored(weight: jax.Array, cast: jax.Array) -> jax.Array:
    """`cast`, which is `weight` in another dtype, with the gradient going to `weight` in its own:
    cast once before a loop, whose gradients still add up in float32.
    """
    return cast


stored.defvjp(
    lambda weight, cast: (cast, jnp.zeros((), weight.dtype)),
    lambda kept, gradient: (gradient.astype(kept.dtype), None),
)


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
