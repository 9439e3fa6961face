"""Random permutations of any size, computed position by position, without a table.

A Feistel network over the next power of two is a permutation of it whatever its round function is;
a value beyond the size is permuted again until it falls within it (cycle walking: Black and Rogaway
2002, "Ciphers with Arbitrary Finite Domains", §3).
"""

import zlib

import numpy as np

_ROUNDS = 6  # even, so that the halves end as wide as they began
_TABLE = 4096  # up to here a table is as cheap, and exactly uniform


def generator(*key: int | str) -> np.random.Generator:
    return np.random.default_rng(
        [zlib.crc32(part.encode()) if isinstance(part, str) else part % 2**64 for part in key]
    )


def permuted(positions: np.ndarray, size: int, *key: int | str) -> np.ndarray:
    """Returns the numbers at some positions of a key's random order of `range(size)`, `[n]` int64.

    Args:
      positions: `[n]` integers in `[0, size)`.
      size: up to 2**62; memory and time do not depend on it.
      key: of the order.
    """
    random = generator("order", *key)
    if size <= _TABLE:
        return random.permutation(size)[positions]
    keys = random.integers(2**64, size=_ROUNDS, dtype=np.uint64)
    bits = (size - 1).bit_length()
    values = _network(positions.astype(np.uint64), bits, keys)
    while (beyond := np.flatnonzero(values >= size)).size:
        values[beyond] = _network(values[beyond], bits, keys)
    return values.astype(np.int64)


def _network(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Permutes `[n]` uint64 values of some bits."""
    low = bits // 2
    for key in keys:
        high = bits - low
        right = values & np.uint64(2**low - 1)
        mixed = _mixed(right ^ key) >> np.uint64(64 - high)
        values = (right << np.uint64(high)) | ((values >> np.uint64(low)) ^ mixed)
        low = high
    return values


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns 64 bits that depend on all bits of each value, by the finaliser of SplitMix64.

    Source: Steele, Lea and Flood 2014.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
