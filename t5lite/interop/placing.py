"""Fills sharded arrays piece by piece, so that no host holds a whole one."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.errors import InputError

Region = tuple[tuple[int, int], ...]  # start and stop on each axis
# Index of an entry on the leading axis, or on several; None for all of an array.
Layer = int | tuple[int, ...] | None
_ALIGNMENT = 64  # with which XLA's CPU devices take a NumPy buffer without a copy
_PLAIN = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_STRIP, _LARGE, _THREADS = 16, 1 << 20, min(16, os.cpu_count() or 1)


class Piece(NamedTuple):
    """An array or one layer of it; `read` returns its values cheaply: a view of a mapped file."""

    layer: Layer
    read: Callable[[], np.ndarray]


def index_of(layer: Layer) -> tuple[int, ...]:
    if layer is None:
        return ()
    return layer if isinstance(layer, tuple) else (layer,)


def fill(leaf: jax.ShapeDtypeStruct, pieces: Iterable[Piece], copied: Callable[[int], None]) -> Any:
    """Assembles an array from pieces that fill it, copying only this process's regions.

    Args:
      leaf: its shape, dtype (the pieces are cast to it) and sharding; without one it is NumPy's.
      copied: called with the bytes of each piece.
    """
    buffers = {region: _aligned(region, leaf.dtype) for region in regions(leaf)}
    for piece in pieces:
        index = index_of(piece.layer)
        due = [region for region in buffers if _holds(region, index)]
        if due:  # the layers of other processes are not read
            values = piece.read()
            copied(sum(_copy(values, buffers[region], region, index) for region in due))
    if leaf.sharding is None:
        return next(iter(buffers.values()))

    def shard(index: Any) -> np.ndarray:
        return buffers[_region(index, leaf.shape)]

    # Devices that hold the same region share the buffer if their memory is the host's.
    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, shard, dtype=leaf.dtype)
    # The buffers live until the devices have their copies: the next leaf's must not add to them.
    return jax.block_until_ready(array)


def regions(leaf: jax.ShapeDtypeStruct) -> list[Region]:
    """Returns the regions of an array that this process's devices hold, each once."""
    if leaf.sharding is None:
        return [tuple((0, size) for size in leaf.shape)]
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return list(dict.fromkeys(_region(index, leaf.shape) for index in indices))


def local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Returns how many bytes `fill` copies."""
    counts = (
        np.prod([stop - start for start, stop in region], dtype=int) for region in regions(leaf)
    )
    return int(sum(counts)) * np.dtype(leaf.dtype).itemsize


def check_sharding(path: str, leaf: jax.ShapeDtypeStruct) -> None:
    """Raises InputError if an array does not divide over its devices."""
    try:
        if leaf.sharding is not None:
            leaf.sharding.shard_shape(leaf.shape)
    except ValueError as error:
        raise InputError(
            f"{path} {list(leaf.shape)} does not divide over the devices as the layout says: "
            f"{error}"
        ) from error


def host_pieces(array: Any, layer: Layer) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields an array of this process, or a layer of it, by device regions: index and values."""
    index = index_of(layer)
    if not isinstance(array, jax.Array):
        yield ..., _entry(np.asarray(array), index)
        return
    shards = {_region(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    for region, data in shards.items():
        if _holds(region, index):
            inner = region[len(index) :]
            yield (
                (*(slice(*bounds) for bounds in inner), ...),
                _on_host(data, _within(region, index)),
            )


def _on_host(data: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    if all(device.platform == "cpu" for device in data.devices()):  # a view
        return _entry(np.asarray(data), index)
    # An array caches its copy on the host: that of a temporary copy is freed.
    return np.asarray(data[index] if index else data.copy())


def _entry(array: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    """Returns a view even of a single number."""
    key: Any = (*index, ...)
    return array[key]


def _holds(region: Region, index: tuple[int, ...]) -> bool:
    return all(start <= entry < stop for entry, (start, stop) in zip(index, region, strict=False))


def _within(region: Region, index: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the index of an entry relative to a region that holds it."""
    return tuple(entry - start for entry, (start, _) in zip(index, region, strict=False))


def _copy(values: np.ndarray, buffer: np.ndarray, region: Region, index: tuple[int, ...]) -> int:
    """Copies a region's part of a piece, cast, and returns the bytes."""
    buffer = _entry(buffer, _within(region, index))
    part = values[tuple(slice(*bounds) for bounds in region[len(index) :])]
    _copy_values(part, buffer)
    return buffer.nbytes


def _copy_values(values: np.ndarray, buffer: np.ndarray) -> None:
    """Copies an array, cast; a transposed one in strips, on all cores.

    NumPy would walk a transposed source along the buffer's rows and fetch a cache line for every
    number; a strip's rows are as long as a line, so that each is fetched once.
    """
    size = values.itemsize
    if values.dtype == buffer.dtype and size in _PLAIN:
        # NumPy's own types are copied faster than bfloat16, and without Python's lock.
        values, buffer = values.view(_PLAIN[size]), buffer.view(_PLAIN[size])
    length = values.shape[-1] if values.ndim > 1 else 0
    transposed = length > _STRIP and values.strides[-1] > size
    if not transposed or values.nbytes < _LARGE or values.dtype.kind == "V":
        _cast(buffer, values)
        return

    def copy(start: int) -> None:
        for first in range(start, min(start + step, length), _STRIP):
            strip = (..., slice(first, first + _STRIP))
            _cast(buffer[strip], values[strip])

    step = _STRIP * max(1, length // (_STRIP * 4 * _THREADS))
    list(_pool().map(copy, range(0, length, step)))


def _cast(buffer: np.ndarray, values: np.ndarray) -> None:
    """Copies; numbers beyond the buffer's dtype become infinite, which `finite` reports."""
    with np.errstate(over="ignore"):  # here, because threads do not inherit it
        np.copyto(buffer, values, casting="unsafe")


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="t5lite-copy")


def _region(index: tuple[slice, ...], shape: tuple[int, ...]) -> Region:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _aligned(region: Region, dtype: Any) -> np.ndarray:
    shape = tuple(stop - start for start, stop in region)
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)
