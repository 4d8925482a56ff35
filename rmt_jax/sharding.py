"""The mesh, and one table that says where each array lives. The model does not know it."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax import config as cfg
from rmt_jax.config import ConfigError
from rmt_jax.shapes import Batch

AXES = ("data", "fsdp", "tensor")
P = PartitionSpec

# Weight name (regular expression over the whole path) -> where it lives. A leading `layers` axis
# is never split. Small vectors are replicated: splitting them saves nothing.
TABLE: tuple[tuple[str, PartitionSpec], ...] = (
    (r"backbone/(wte|wpe|head)", P(None, ("fsdp", "tensor"))),
    (r"backbone/blocks/(qkv|up)/kernel", P("fsdp", "tensor")),
    (r"backbone/blocks/(qkv|up)/bias", P("tensor")),
    (r"backbone/blocks/(out|down)/kernel", P("tensor", "fsdp")),
    (r"backbone/blocks/(out|down)/bias", P()),
    (r"backbone/blocks/(ln_1|ln_2)/(scale|bias)", P()),
    (r"backbone/blocks/conv", P()),
    (r"backbone/ln_f/(scale|bias)", P()),
    (r"memory|prompt/table", P()),
    (r"associative/(query|key|value)", P("fsdp", "tensor")),
    (r"associative/(beta|beta_bias)", P()),
)


def make_mesh(mesh: cfg.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh with axes data, fsdp, tensor over all devices that JAX sees.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ConfigError(
            f"mesh sizes data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}: each must be 1"
            " or more, and one of them may be -1 (whatever is left)."
        )
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if int(np.prod([abs(s) for s in sizes])) != len(devices) or -1 in sizes:
        raise ConfigError(
            f"mesh data={mesh.data} · fsdp={mesh.fsdp} · tensor={mesh.tensor} does not cover the"
            f" {len(devices)} visible devices: choose sizes whose product is {len(devices)}, or set"
            " one to -1."
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def rows_of(name: str) -> list[str]:
    """The patterns of the table that match a weight's whole name: one, if the table is right."""
    return [pattern for pattern, _ in TABLE if re.fullmatch(pattern, name)]


def weight_spec(name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    """Where the weight `name` of this shape lives.

    Raises:
      KeyError: no row of the table, or more than one, matches.
      ConfigError: an axis of the mesh does not divide the weight's.
    """
    rows = rows_of(name)
    if len(rows) != 1:
        raise KeyError(f"{len(rows)} rows of sharding.TABLE match the weight '{name}'.")
    row = dict(TABLE)[rows[0]]
    spec = P(*([None] * (len(shape) - len(row)) + list(row)))
    for size, axis in zip(shape, spec, strict=True):
        axes = () if axis is None else (axis,) if isinstance(axis, str) else axis
        ways = int(np.prod([mesh.shape[a] for a in axes]))
        if size % ways:
            raise ConfigError(
                f"The weight '{name}' {shape} has an axis of {size:,} that mesh axis"
                f" {'·'.join(axes)} = {ways} does not divide: choose a divisor of {size:,}."
            )
    return spec


def place_state(state: Any, params: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings of a train state: weights by the table, moments where their weight is."""
    specs = {name: weight_spec(name, leaf.shape, mesh) for name, leaf in named(params).items()}

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
    """This host's rows as one global array a field."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def named(tree: Any) -> dict[str, Any]:
    """Leaves by path, `blocks/attention/kernel`."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def path_name(path: tuple) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
    return "/".join(str(part) for part in parts)
