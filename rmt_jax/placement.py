"""A model's weights and the texts that it reads, over the devices of a mesh.

Texts side by side are independent: each device goes through its own, and where the mesh has `data`
alone none waits for another; where they are too few there, each device reads them with some of the
layers. Weights are split as in training (`runtime.mesh.AXES_OF`).

A mesh may have the devices of several processes: these then call everything together, with the same
texts, and each gets all that is said of them. Otherwise each process reads texts of its own.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rmt_jax import models
from rmt_jax.config import Config
from rmt_jax.models import Outline, platform
from rmt_jax.models.cells import Memory
from rmt_jax.models.generate import DecodingCache
from rmt_jax.models.io import lazy, weights
from rmt_jax.models.sampling import Draw
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime import startup

ROWS = ("data", "fsdp")  # axes of the mesh that texts are spread over
LAYERS = "layers"  # the axis of a mesh whose devices have some of the layers each


def mesh_of(config: Config, everywhere: bool | None) -> jax.sharding.Mesh | None:
    """The mesh of `api.load(everywhere=…)`; None for one device."""
    if everywhere:
        startup.cores_as_devices(config.model)
    elif everywhere is not None or config.mesh.fsdp == config.mesh.tensor == 1:
        return None
    return sharding.reading_mesh(config.mesh)


def mesh_of_all(config: Config) -> jax.sharding.Mesh | None:
    """The devices of all processes, to train with; None for one device."""
    startup.cores_as_devices(config.model)
    return sharding.fitting_mesh(config.mesh, jax.devices())


class Placement:
    """Where a model lives, and how its functions are compiled for it.

    Attributes:
      outline: the model without its weights.
      mesh: of the model's devices; None: one device.
      ways: texts side by side are spread where they are a multiple of it. Others are read by the
        first device or, in layers, by several; where the devices share the weights, by all of them,
        each of them whole.
      reader, readers: this process is number `reader` of those that read texts of their own.
      tells: whether it says what comes of the texts that it reads.
    """

    def __init__(self, outline: Outline, mesh: jax.sharding.Mesh | None = None):
        """mesh: None: the first device of this process."""
        self.outline, self.mesh, self.ways = outline, mesh, 1
        self._across = sharding.across(mesh)
        if mesh is not None:
            self.ways = mesh.shape["data"] * mesh.shape["fsdp"]
            # Each device has all weights, and each text is read by the process that was given it.
            self._alike = mesh.shape["data"] == mesh.size and not self._across
        self.reader, self.readers = (
            (0, 1) if self._across else (jax.process_index(), jax.process_count())
        )
        self.tells = not self._across or startup.owner()
        self._sharing = self._by_layers(mesh) if mesh is not None and self._alike else None

    def weights(self, params: Any) -> dict[str, Any]:
        """`params`, nested, numpy or lazy, as float32 arrays in their shards, of lazy ones one
        after the other. Raises ConfigError where an axis of the mesh does not divide a weight's."""
        if self.mesh is None:
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
        placed = {}
        for name, value in weights.flatten(params).items():
            spec = sharding.weight_spec(name, value.shape, self.outline.weights[name], self.mesh)
            placed[name] = lazy.to_devices(value, NamedSharding(self.mesh, spec))
        return weights.unflatten(placed)

    def beside_weights(self, state: Any, params: Any) -> Any:
        """Where a tree lives whose arrays are weights of `params`, or beside these and named after
        them, as an optimizer's moments; the rest of it everywhere. None without a mesh."""
        if self.mesh is None:
            return None
        return sharding.place_state(state, params, self.outline.weights, self.mesh)

    @property
    def whole(self) -> NamedSharding | None:
        """Of what every device has; None without a mesh."""
        return None if self.mesh is None else sharding.replicated(self.mesh)

    def texts(self, batch: Any) -> Any:
        """Arrays [B, ...] in numpy, the same on all processes, on the devices."""
        return batch if self.mesh is None else sharding.put_whole_batch(batch, self.mesh)

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(model, ...)` as one of the weights in place of the model."""

        def run(params: Any, *inputs: Any, **static: Any) -> Any:
            return function(models.merge(self.outline.static, params), *inputs, **static)

        return run

    def compiled(
        self,
        function: Callable[..., Any],
        apart: bool = True,
        in_layers: Callable[..., Memory] | None = None,
        **options: Any,
    ) -> Any:
        """`function(params, *inputs, **static)`, compiled for texts that are spread and for others.

        Inputs are trees of scalars, of arrays whose first axis is the texts, and of `Memory`.
        options: of `jax.jit`.

        Args:
          apart: what comes back is such a tree too, so that devices need not wait for each other.
          in_layers: the same for texts that are not spread, to be run on each of several devices
            with some of the layers, along the axis `LAYERS` (`models.pipeline`).
        """
        if self._across:
            function = self._heard(function)
        alone = jax.jit(function, **options)
        if self.mesh is None:
            return alone
        mesh, shared = self.mesh, None
        if in_layers is not None and self._sharing is not None:
            shared = jax.jit(functools.partial(self.sharing_layers, in_layers), **options)
        together = jax.jit(functools.partial(self._together, function), **options)
        by_hand = jax.jit(functools.partial(self.by_hand, function), **options)

        def call(params: Any, *inputs: Any, **static: Any) -> Any:
            count = _texts(inputs)
            spread = count > 0 and count % self.ways == 0
            if shared is not None and not spread:
                return _ONE_AT_A_TIME(shared, *self._at_layers(params, inputs), **static)
            if self._alike and not spread:
                first = mesh.devices.flat[0]
                params = jax.tree.map(lambda x: x.addressable_data(0), params)
                return alone(params, *jax.device_put(inputs, first), **static)
            inputs = self._place(inputs, ROWS if spread else None, mesh)
            chosen = by_hand if self._alike and apart and not _drawn(inputs) else together
            return chosen(params, *inputs, **static)

        return call

    def trace(
        self,
        function: Callable[..., Any],
        shapes: Any,
        *inputs: Any,
        apart: bool = True,
        in_layers: Callable[..., Memory] | None = None,
        **options: Any,
    ) -> jax.stages.Traced:
        """What `compiled` compiles for a mesh, of shapes alone, where the texts are spread over it
        or its devices have some of the layers each.

        shapes: of the weights, nested. inputs: trees of `jax.ShapeDtypeStruct`. options: of
        `jax.jit`, `static_argnames` aside: what is static is bound in `function` already.
        """
        mesh, infos = self.mesh, self.outline.weights
        assert mesh is not None
        if _texts(inputs) % self.ways:
            assert in_layers is not None and self._sharing is not None
            place = functools.partial(_shape_at, mesh=self._sharing, spec=PartitionSpec())
            run = jax.jit(functools.partial(self.sharing_layers, in_layers), **options)
            return run.trace(*jax.tree.map(place, (shapes, *inputs)))
        placed = {}
        for name, one in weights.flatten(shapes).items():
            spec = sharding.weight_spec(name, one.shape, infos[name], mesh)
            placed[name] = _shape_at(one, mesh, spec)
        given = jax.tree.map(
            lambda x, spec: _shape_at(x, mesh, spec), inputs, self._specs(inputs, ROWS)
        )
        # Of a mesh of `data` alone each process has its own chips, each chip its own texts.
        alike = mesh.shape["data"] == mesh.size
        way = self.by_hand if alike and apart and not _drawn(inputs) else self._together
        return jax.jit(functools.partial(way, function), **options).trace(
            weights.unflatten(placed), *given
        )

    def _together(self, function: Callable[..., Any], *inputs: Any, **static: Any) -> Any:
        """`function` on all devices at once, as the compiler spreads it."""
        with platform.spread_over(self.mesh):
            return function(*inputs, **static)

    def by_hand(self, function: Callable[..., Any], *inputs: Any, **static: Any) -> Any:
        """`function` on each device, of its own texts."""
        run = functools.partial(function, **static)
        whole = jax.tree.map(lambda _: PartitionSpec(), inputs[0])
        return jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=(whole, *self._specs(inputs[1:], "data")),
            out_specs=self._specs(jax.eval_shape(run, *inputs), "data"),
            check_vma=False,
        )(*inputs)

    def sharing_layers(self, function: Callable[..., Memory], *inputs: Any, **static: Any) -> Any:
        """`function` on each device that has some of the layers."""
        return jax.shard_map(
            functools.partial(function, **static),
            mesh=self._sharing,
            in_specs=PartitionSpec(),
            out_specs=Memory(PartitionSpec(LAYERS), PartitionSpec()),  # pyright: ignore
            check_vma=False,
        )(*inputs)

    def _by_layers(self, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh | None:
        """Of as many devices as the layers divide by; None: of one."""
        devices = max(n for n in range(1, mesh.size + 1) if self.outline.pipeline % n == 0)
        return None if devices == 1 else jax.sharding.Mesh(mesh.devices.flat[:devices], (LAYERS,))

    def _at_layers(self, params: Any, inputs: Any) -> tuple[Any, ...]:
        """Weights, of which every device of the mesh has its own, and inputs."""
        assert self._sharing is not None
        whole, count = NamedSharding(self._sharing, PartitionSpec()), self._sharing.size

        def own(x: jax.Array) -> jax.Array:
            parts = [shard.data for shard in x.addressable_shards[:count]]
            return jax.make_array_from_single_device_arrays(x.shape, whole, parts)

        return jax.tree.map(own, params), *jax.device_put(inputs, whole)

    def _specs(self, tree: Any, rows: Any) -> Any:
        """How arrays are split, the same tree."""

        def of(one: Any) -> Any:
            if not isinstance(one, Memory):
                return PartitionSpec(rows) if np.ndim(one) else PartitionSpec()
            inside = PartitionSpec(*[None] * self.outline.batch_axis, rows)
            started: Any = PartitionSpec(rows)
            return Memory(jax.tree.map(lambda _: inside, one.state), started)

        return jax.tree.map(of, tree, is_leaf=lambda one: isinstance(one, Memory))

    def _place(self, inputs: Any, rows: Any, mesh: jax.sharding.Mesh) -> Any:
        """Inputs on the devices; a `DecodingCache` is there already."""

        def place(one: Any) -> Any:
            if isinstance(one, DecodingCache):
                return one
            places = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec),
                self._specs(one, rows),
                is_leaf=lambda spec: isinstance(spec, PartitionSpec),
            )
            if self._across:
                return jax.tree.map(_put_across, one, places)
            return jax.device_put(one, places)

        return jax.tree.map(place, inputs, is_leaf=lambda one: isinstance(one, _WHOLE))

    def _heard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose results come whole to every process; memories and caches stay where
        they are."""
        whole = self.whole

        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            return jax.tree.map(
                lambda x: (
                    x if isinstance(x, _WHOLE) else jax.lax.with_sharding_constraint(x, whole)
                ),
                function(*args, **named),
                is_leaf=lambda x: isinstance(x, _WHOLE),
            )

        return run


def _put_across(value: Any, place: NamedSharding) -> jax.Array:
    """Numpy that all processes have alike needs no message between them to be checked."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.device_put(value, place)
    if jnp.issubdtype(getattr(value, "dtype", int), jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(value))
        return jax.random.wrap_key_data(sharding.put_whole(data, place))
    return sharding.put_whole(np.asarray(value), place)


class _OneAtATime:
    """Calls programs whose devices wait for each other. On a CPU they wait in the threads of one
    pool: two such programs, of two threads of the user's, would wait for ever."""

    def __init__(self) -> None:
        self.lock, self.last = threading.Lock(), None

    def __call__(self, run: Callable[..., Any], *inputs: Any, **static: Any) -> Any:
        with self.lock:
            with contextlib.suppress(RuntimeError):  # its own caller hears of what it died of
                jax.block_until_ready(self.last)
            self.last = run(*inputs, **static)
            return self.last


_ONE_AT_A_TIME = _OneAtATime()
_WHOLE = (Memory, DecodingCache)


def _drawn(inputs: tuple[Any, ...]) -> bool:
    """A token is drawn by its text's number among all of them."""
    return any(isinstance(one, Draw) for one in inputs)


def _shape_at(x: Any, mesh: jax.sharding.Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))


def _texts(inputs: Any) -> int:
    """How many texts stand side by side; 0: there are none among the inputs."""
    for one in jax.tree.leaves(inputs, is_leaf=lambda one: isinstance(one, Memory)):
        if isinstance(one, Memory):
            return one.started.shape[0]
        if getattr(one, "ndim", 0):
            return one.shape[0]
    return 0
