"""Checksums of arrays, independent of their sharding, that reveal damage on a disk.

Fletcher's two sums modulo 2**32: of an array's words, and of its words times their index. A flipped
bit always changes the first, swapped words the second. Sums of shards add up to the array's, so
each is computed on its shard's device, and any mesh can check another's checkpoint.

Source: Fletcher 1982, "An Arithmetic Checksum for Serial Transmissions", IEEE Transactions on
  Communications 30(1).
"""

import concurrent.futures
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.parallel import gather

Checksum = list[int]  # two numbers below 2**32
_MASK = 2**32 - 1


def checksums(arrays: Mapping[str, Any]) -> dict[str, Checksum]:
    """Returns name → checksum of whole JAX or numpy arrays; every process passes its part of them.

    Elements have 1, 2, 4 or 8 bytes.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        shards = [
            (name, pool.submit(_sums_of_shard, *shard))
            for name, array in arrays.items()
            for shard in _shards(array)
        ]
    sums = {name: np.zeros(2, np.uint32) for name in arrays}
    for name, future in shards:
        sums[name] += np.asarray(future.result())
    local = {name: [int(value) for value in total] for name, total in sums.items()}
    shared = [name for name, array in arrays.items() if not _whole_here(array)]
    if not shared:
        return local
    parts = gather([local[name] for name in shared])
    return local | {
        name: [sum(part[index][k] for part in parts) & _MASK for k in range(2)]
        for index, name in enumerate(shared)
    }


def _whole_here(array: Any) -> bool:
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def _shards(array: Any) -> Iterator[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """Yields this process's shards with where they begin and the whole array's shape, each once."""
    if not isinstance(array, jax.Array):
        yield np.asarray(array), (0,) * np.ndim(array), np.shape(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield shard.data, tuple(at.start or 0 for at in shard.index), array.shape


def _sums_of_shard(block: Any, start: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    # Elements of 8 bytes are two words along an additional axis.
    wide = block.dtype.itemsize == 8
    rows = (1, *shape) if shape else (1, 1)
    sizes = (*rows, 2) if wide else rows
    strides = np.array([math.prod(sizes[axis + 1 :]) & _MASK for axis in range(len(sizes))])
    offsets = np.array([0] * (len(rows) - len(start)) + [*start] + [0] * wide)
    offsets, strides = offsets.astype(np.uint32), strides.astype(np.uint32)
    if _in_host_memory(block):
        words = np.ascontiguousarray(block).view(f"u{min(block.dtype.itemsize, 4)}")
        words = words.reshape(1, *(block.shape or (1,)), *([2] if wide else []))
        return _sums(np, words.astype(np.uint32, copy=False), offsets, strides)
    return _sums_on_device(block, offsets, strides)


def _in_host_memory(block: Any) -> bool:
    if not isinstance(block, jax.Array):
        return True
    (device,) = block.devices()
    return device.platform == "cpu" or block.sharding.memory_kind != device.default_memory().kind


@jax.jit
def _sums_on_device(block: jax.Array, offsets: jax.Array, strides: jax.Array) -> jax.Array:
    if block.dtype == jnp.bool_:
        words = block
    else:
        unsigned = f"uint{8 * min(block.dtype.itemsize, 4)}"
        words = jax.lax.bitcast_convert_type(block, jnp.dtype(unsigned))
    words = words.reshape(1, *(words.shape or (1,)))
    return _sums(jnp, words.astype(jnp.uint32), offsets, strides)


def _sums(xp: Any, words: Any, offsets: Any, strides: Any) -> Any:
    """Returns both sums `[2]` of a block `words`, `[1, ...]` uint32; `xp` is numpy or `jax.numpy`.

    `offsets` (the block's start in the whole array) and `strides` (words from an index to the next)
    are `[axes]` uint32.
    """
    uint32, last = xp.uint32, words.ndim - 1
    index = xp.zeros((1,) * last, uint32)  # of the first word of each row
    for axis in range(last):
        here = slice(axis, axis + 1)
        along = (xp.arange(words.shape[axis], dtype=uint32) + offsets[here]) * strides[here]
        index = index + along.reshape([-1 if k == axis else 1 for k in range(last)])
    inner = xp.arange(words.shape[last], dtype=uint32) + offsets[last:]
    rows = xp.sum(words, axis=-1, dtype=uint32)
    if xp is np:
        weighted = words @ inner  # without a product as large as the block
    else:
        weighted = xp.sum(words * inner.reshape([1] * last + [-1]), axis=-1, dtype=uint32)
    by_index = xp.sum(weighted + rows * index, dtype=uint32)
    return xp.stack([xp.sum(rows, dtype=uint32), by_index])
