"""The mesh, and one table from logical axes of weights to axes of the mesh."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from rmt_jax import config as cfg
from rmt_jax.config import ConfigError
from rmt_jax.types import Batch, WeightInfo

AXES = ("data", "fsdp", "tensor")
P = PartitionSpec
Sizes = tuple[int, int, int]  # of the axes
MOST = 1 << 26  # numbers of a split array that come to one place at once

# Logical axis of a weight (`types.WeightInfo`) -> axes of the mesh that split it. What is not here
# is never split: layers, vocabulary, small vectors, where splitting saves nothing.
AXES_OF: dict[str, tuple[str, ...]] = {
    "table_features": ("fsdp", "tensor"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "memory_keys": ("tensor",),
    "memory_values": ("tensor",),
}
Weights = Mapping[str, WeightInfo]  # by name, 'backbone/wte'


def make_mesh(mesh: cfg.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh with axes data, fsdp, tensor over all devices that JAX sees.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(mesh, len(devices))
    hosts = len({d.process_index for d in devices})
    if sizes[0] * sizes[1] % hosts:
        raise ConfigError(
            f"mesh data={sizes[0]} · fsdp={sizes[1]} is not a multiple of the {hosts} processes:"
            f" tensor={sizes[2]} would reach across processes, which have {len(devices) // hosts}"
            " devices each. Lower mesh.tensor."
        )
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1:
        return _across_slices(sizes, slices, devices)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def fitting_mesh(mesh: cfg.Mesh, devices: list) -> jax.sharding.Mesh | None:
    """A mesh over `devices`, with the axes fsdp and tensor of a config if they fit, else `data`
    alone. None: there is one device."""
    if len(devices) == 1:
        return None
    rest = 1 if -1 in (mesh.fsdp, mesh.tensor) else -1
    try:
        return make_mesh(dataclasses.replace(mesh, data=rest), devices)
    except ConfigError:
        return make_mesh(cfg.Mesh(), devices)


def reading_mesh(mesh: cfg.Mesh) -> jax.sharding.Mesh | None:
    """The mesh that a model is read with: of the devices of this process, and of those of all
    processes where its weights are split over more than one process has."""
    local, everywhere = jax.local_devices(), jax.devices()
    if max(1, mesh.fsdp) * max(1, mesh.tensor) > len(local) < len(everywhere):
        found = fitting_mesh(mesh, everywhere)
        if found is not None and found.shape["data"] < found.size:
            return found
    return fitting_mesh(mesh, local)


def planned(sizes: Sizes) -> AbstractMesh:
    """A mesh without devices, to plan with."""
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_sizes(mesh: cfg.Mesh, count: int) -> Sizes:
    """Sizes of data, fsdp, tensor over `count` devices. Raises ConfigError, as `make_mesh`."""
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ConfigError(
            f"mesh sizes data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}: each must be 1"
            " or more, and one of them may be -1 (whatever is left)."
        )
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if int(np.prod([abs(s) for s in sizes])) != count or -1 in sizes:
        way = f"choose sizes whose product is {count}, or set one to -1"
        if -1 in sizes:
            way = f"the sizes that are not -1 have the product {fixed}, which must divide {count}"
        raise ConfigError(
            f"mesh data={mesh.data} · fsdp={mesh.fsdp} · tensor={mesh.tensor} does not cover the"
            f" {count} visible device{'s' * (count > 1)}: {way}."
        )
    return sizes[0], sizes[1], sizes[2]


def _across_slices(sizes: Sizes, slices: int, devices: list) -> jax.sharding.Mesh:
    """Several TPU slices: only `data` crosses the slow network between them."""
    if sizes[0] % slices:
        raise ConfigError(
            f"mesh data={sizes[0]} is not a multiple of the {slices} TPU slices, between which only"
            " data may be split."
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices=devices
    )
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batches(config: cfg.Config, mesh: jax.sharding.Mesh | AbstractMesh) -> None:
    """Rows of a microbatch must spread evenly over `data` and `fsdp`.

    Raises:
      ConfigError: with the nearest batch that does.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * config.optimizer.accumulate
    for number, stage in enumerate(config.stages):
        batch = stage.batch
        if batch % ways:
            parts = " · ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES[:2])
            raise ConfigError(
                f"stages.{number}.batch {batch} does not divide evenly over mesh {parts}"
                f" · optimizer.accumulate={config.optimizer.accumulate}: make it a multiple of"
                f" {ways}, such as {-(-batch // ways) * ways}."
            )


def weight_spec(
    name: str, shape: tuple[int, ...], info: WeightInfo, mesh: jax.sharding.Mesh | AbstractMesh
) -> PartitionSpec:
    """Where the weight `name` of this shape lives.

    Raises:
      ConfigError: an axis of the mesh does not divide the weight's, or the axes that are said of
        it are not those that it has.
    """
    if len(info.axes) != len(shape):
        raise ConfigError(
            f"The weight '{name}' has the shape {shape}, but `weights()` says {len(info.axes)} axes"
            f" of it: {info.axes}."
        )
    spec = []
    for size, logical in zip(shape, info.axes, strict=True):
        axes = AXES_OF.get(logical or "", ())
        ways = int(np.prod([mesh.shape[a] for a in axes]))
        if size % ways:
            raise ConfigError(
                f"The weight '{name}' {shape} has an axis of {size:,} that mesh axis"
                f" {'·'.join(axes)} = {ways} does not divide: choose a divisor of {size:,}."
            )
        spec.append(axes[0] if len(axes) == 1 else axes or None)
    return P(*spec)


def place_state(
    state: Any, params: Any, weights: Weights, mesh: jax.sharding.Mesh | AbstractMesh
) -> Any:
    """Shardings of a train state: weights by their logical axes, moments where their weight is.
    Raises ConfigError as `weight_spec`."""
    missing = sorted(named(params).keys() - weights.keys())
    if missing:
        raise ConfigError(
            f"Nothing is known of the weight {', '.join(missing)}: its backbone or cell must name"
            " it in `weights()`."
        )
    specs = {
        name: weight_spec(name, leaf.shape, weights[name], mesh)
        for name, leaf in named(params).items()
    }

    def place(path, leaf):
        name = path_name(path)
        for weight, spec in specs.items():
            if (name == weight or name.endswith("/" + weight)) and leaf.ndim == len(spec):
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows of a batch are spread over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """This host's rows as one global array a field. (On TPUs the order of rows in the global
    array may differ from the data's: every use of a batch is a sum over rows.)"""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """A batch that every host has made in full, each device taking its rows (or all of them,
    where they do not divide). The rows of every array in it are the texts."""
    rows, ways = len(jax.tree.leaves(batch)[0]), mesh.shape["data"] * mesh.shape["fsdp"]
    sharding = batch_sharding(mesh) if rows % ways == 0 else replicated(mesh)
    return jax.tree.map(lambda x: put_whole(x, sharding), batch)


def put_whole(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every host has in full, each device taking its part."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def across(mesh: jax.sharding.Mesh | None) -> bool:
    """Whether the mesh has devices of several processes."""
    return mesh is not None and len({d.process_index for d in mesh.devices.flat}) > 1


def blocks(value: jax.Array) -> Iterator[np.ndarray]:
    """The rows of an array on every host, some at a time: of one that is split no device holds
    more than its share and `MOST` numbers, or a row. All processes must call it, to its end."""
    rows = max(1, MOST // max(1, math.prod(value.shape[1:])))
    if value.ndim == 0 or value.shape[0] <= rows:
        yield _on_this_host(value)
        return
    for start in range(0, value.shape[0], rows):
        count = min(rows, value.shape[0] - start)
        yield _on_this_host(_rows(value, np.int32(start), count))


def on_this_host(value: jax.Array) -> np.ndarray:
    """An array whole on every host. All processes must call it."""
    found = list(blocks(value))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _on_this_host(value: jax.Array) -> np.ndarray:
    if jax.process_count() == 1 or value.is_fully_addressable:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


@functools.partial(jax.jit, static_argnums=2)
def _rows(value: jax.Array, start: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(value, start, count)


def exchange(said: bytes) -> list[bytes]:
    """What each process says, in their order. All processes must call it."""
    if jax.process_count() == 1:
        return [said]
    sizes = multihost_utils.process_allgather(np.int32(len(said)))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(said)] = np.frombuffer(said, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def named(tree: Any) -> dict[str, Any]:
    """Leaves by path, `blocks/attention/kernel`."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def path_name(path: tuple) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
    return "/".join(str(part) for part in parts)
