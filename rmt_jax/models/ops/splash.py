"""Attention on a TPU by JAX's splash kernel (Pallas), where no more than the causal triangle and
unknown keys are hidden.

No scores and no mask are written: a head's queries, keys and values are read once, all of its
places together, and the backward pass makes the scores again. Padding, prompt and memory are told
as segment ids, so that nothing moves. Arrays that the compiler spreads over chips are given to the
kernel a chip at a time, since it cannot split a kernel itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rmt_jax.models import platform

LANES = 128  # of a TPU: the kernel takes places in multiples of it
WHOLE = 1024  # places that stand in the chip's own memory together
LEAST = 384  # places from which on the kernel moves fewer bytes than plain products do
NAME = "attention"  # of what the kernel keeps for its backward pass
ROWS = ("data", "fsdp")  # axes of a mesh that split texts; `tensor` splits heads


def serves(shape: tuple[int, ...], groups: int) -> bool:
    """Whether it takes queries [B, N, H, d] and keys of `groups` heads, as the mesh splits them."""
    mesh, ways = platform.mesh(), [1, 1]
    for axis in _spread():
        ways[axis == "tensor"] *= mesh.shape[axis] if mesh is not None else 1
    return shape[1] >= LEAST and not shape[0] % ways[0] and not groups % ways[1]


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    known: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` where `visible` is causal & known[:, None].

    queries [B, N, H, d]; keys, values [B, N, G, d]; known bool[B, N]. interpret: the kernel in
    plain JAX, for other devices. A place that sees nothing (padding in front) gets finite numbers.
    Returns [B, N, H, d].
    """
    function = functools.partial(_attend, interpret=interpret)
    axes, mesh = _spread(), platform.mesh()
    if mesh is None or not axes:
        return function(queries, keys, values, known)
    rows = tuple(axis for axis in axes if axis in ROWS) or None
    heads = PartitionSpec(rows, None, "tensor" if "tensor" in axes else None, None)
    by_hand = jax.sharding.get_abstract_mesh().manual_axes
    return jax.shard_map(
        function,
        # Inside another one of our own the mesh is known, some of its axes by hand already.
        mesh=None if by_hand else mesh,
        in_specs=(heads, heads, heads, PartitionSpec(rows, None)),
        out_specs=heads,
        # All of them: none, not even one of a single device, may be the compiler's.
        axis_names={name for name in mesh.shape if name not in by_hand},
        check_vma=False,
    )(queries, keys, values, known)


def _spread() -> tuple[str, ...]:
    """Axes of the mesh along which the compiler spreads what is traced here."""
    mesh = platform.mesh()
    if mesh is None:
        return ()
    by_hand = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name, size in mesh.shape.items() if size > 1 and name not in by_hand)


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, known: jax.Array, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    places, heads, width = queries.shape[1:]
    block = min(WHOLE, -(-places // LANES) * LANES)
    more = -places % block
    kernel = _kernel(places + more, block, heads, width % LANES > 0, interpret)
    queries = queries * jnp.asarray(width**-0.5, queries.dtype)

    def placed(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))

    seen = jnp.pad(known, ((0, 0), (0, more))).astype(jnp.int32)
    # Queries are all of one segment, known keys too: what is unknown is seen by none.
    ids = splash.SegmentIds(q=jnp.ones_like(seen), kv=seen)
    out = jax.vmap(kernel)(placed(queries), placed(keys), placed(values), ids)
    return out[:, :, :places].swapaxes(1, 2).astype(values.dtype)


def _kernel(places: int, block: int, heads: int, narrow: bool, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.MultiHeadMask([splash.CausalMask((places, places))] * heads)
    # Heads narrower than the lanes would be padded to them: places lie along the lanes instead.
    layout = splash.QKVLayout.SEQ_MINOR if narrow else splash.QKVLayout.HEAD_DIM_MINOR
    sizes = splash.BlockSizes(
        *(block, block, block),
        *(block, block, block),
        use_fused_bwd_kernel=True,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    return splash.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=NAME,
        interpret=interpret,
    )


def kept() -> Any:
    """A policy of `jax.checkpoint`: results of products with weights, and of the kernel."""
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(NAME)
    )
