"""Tensors that stay in their file until they are asked for, and their way onto devices.

A checkpoint of billions of weights fits no host and no single device. Its names and shapes are
known at once; what is read is what the devices of this process need, one layer's matrix at a time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Index = tuple[slice, ...]  # one of each axis, with start and stop, steps of 1
ROWS = 1 << 26  # numbers that are compared or written at once


class LazyArray:
    """An array of which `read(index)` gives a part; `np.asarray(lazy)` is the whole of it."""

    def __init__(self, shape: Sequence[int], dtype: Any, read: Callable[[Index], np.ndarray]):
        """read: of a slice of each axis, the numbers there, of this dtype."""
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(dtype)
        self._read = read

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Slices along the first axes, steps of 1; the rest of the axes whole."""
        index = index if isinstance(index, tuple) else (index,)
        whole = (*index, *[slice(None)] * (self.ndim - len(index)))
        pairs = zip(whole, self.shape, strict=True)
        return self.part(tuple(slice(*part.indices(size)[:2]) for part, size in pairs))

    def part(self, index: Index) -> np.ndarray:
        """The numbers in a slice of each axis."""
        shape = [max(0, one.stop - one.start) for one in index]
        # What reads a file may take no slice that is empty, as those behind the last row are.
        return self._read(index) if all(shape) else np.empty(shape, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self[()]
        return np.array(found, dtype, copy=True if copy else None)

    @property
    def T(self) -> "LazyArray":
        """The axes in the other order, as numpy's."""
        return LazyArray(self.shape[::-1], self.dtype, lambda index: self.part(index[::-1]).T)

    def astype(self, dtype: Any) -> "LazyArray":
        def read(index: Index) -> np.ndarray:
            return self.part(index).astype(dtype, copy=False)

        return LazyArray(self.shape, dtype, read)


Array = np.ndarray | LazyArray  # what a table of weights by name holds


def stack(parts: Sequence[Array]) -> Array:
    """As `np.stack`, of arrays of one shape; lazy where the parts are."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.stack([np.asarray(part) for part in parts])

    def read(index: Index) -> np.ndarray:
        first, rest = index[0], index[1:]
        chosen = [np.asarray(part[rest]) for part in parts[first]]
        shape = tuple(i.stop - i.start for i in rest)
        return np.stack(chosen) if chosen else np.empty((0, *shape), dtype)

    dtype = parts[0].dtype
    return LazyArray((len(parts), *parts[0].shape), dtype, read)


def concatenate(first: LazyArray, more: np.ndarray) -> LazyArray:
    """As `np.concatenate` along the first axis."""
    rows = first.shape[0]

    def read(index: Index) -> np.ndarray:
        (start, stop), rest = (index[0].start, index[0].stop), index[1:]
        above = first[(slice(min(start, rows), min(stop, rows)), *rest)]
        below = more[(slice(max(start - rows, 0), max(stop - rows, 0)), *rest)]
        return np.concatenate([above.astype(more.dtype, copy=False), below])

    return LazyArray((rows + len(more), *first.shape[1:]), more.dtype, read)


def columns(value: Array, order: np.ndarray) -> Array:
    """The last axis in another order: place i has what stood at order[i]."""
    if isinstance(value, np.ndarray):
        return value[..., order]

    def read(index: Index) -> np.ndarray:
        return value[index[:-1]][..., order[index[-1]]]

    return LazyArray(value.shape, value.dtype, read)


def unstack(value: Array) -> list[Array]:
    """The inverse of `stack`."""
    if isinstance(value, np.ndarray):
        return list(value)

    def layer(number: int) -> LazyArray:
        def read(index: Index) -> np.ndarray:
            return value[(slice(number, number + 1), *index)][0]

        return LazyArray(value.shape[1:], value.dtype, read)

    return [layer(number) for number in range(value.shape[0])]


def blocks(value: Any) -> Iterator[np.ndarray]:
    """The rows of an array one after the other; of a lazy one some at a time, without the rest."""
    if not isinstance(value, LazyArray):
        yield np.asarray(value)
        return
    for cut in _cuts(value.shape):
        yield np.asarray(value[cut])


def equal(a: Array, b: Array) -> bool:
    """As `np.array_equal`, some rows at a time."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(np.asarray(a[cut]), np.asarray(b[cut])) for cut in _cuts(a.shape))


def _cuts(shape: tuple[int, ...]) -> list[Any]:
    """Slices of the first axis that hold about `ROWS` numbers each."""
    if not shape:
        return [()]
    rows = max(1, ROWS // max(1, math.prod(shape[1:])))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]


def to_devices(value: Array, sharding: jax.sharding.Sharding, dtype: Any = np.float32) -> jax.Array:
    """`value` as one array laid out by `sharding`, of which each process reads what its devices
    hold. Of stacked layers one is in memory at a time, beside the parts that are being filled."""
    places: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(value.shape).items():
        assert index is not None  # a device of this process
        pairs = zip(index, value.shape, strict=True)
        key = tuple(part.indices(size)[:2] for part, size in pairs)
        places.setdefault(key, []).append(device)
    parts = {key: np.empty([stop - start for start, stop in key], dtype) for key in places}
    # What encloses all of them: read once, whatever it is cut into.
    around = [
        (min(s for s, _ in axis), max(e for _, e in axis)) for axis in zip(*places, strict=True)
    ]
    layered = value.ndim > 2
    for layer in range(*around[0]) if layered else (None,):
        box = [(layer, layer + 1), *around[1:]] if layer is not None else around
        read = np.asarray(value[tuple(slice(*pair) for pair in box)])
        for key, part in parts.items():
            cut = key
            if layer is not None:
                (start, stop), *rest = key
                if not start <= layer < stop:
                    continue
                part, cut = part[layer - start : layer - start + 1], ((layer, layer + 1), *rest)
            part[...] = read[
                tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(cut, box, strict=True))
            ]
        del read
    arrays = []
    for key, devices in places.items():
        part = parts.pop(key)
        # Copied before the next one is: a part would be there twice until then.
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
        del part
    return jax.make_array_from_single_device_arrays(value.shape, sharding, arrays)
