"""One reading of what has no places to begin at, dealt to many shards."""

import threading
from collections.abc import Iterator

import numpy as np

_WAITING = 256  # raw examples that a shard may leave lying, at least


class Dealing:
    """Deals the examples of one reading to shards, every `num_shards`-th one to each.

    Shards take theirs about equally fast, so that little is held. Shards of other processes, and
    shards that are far slower, are given up.

    Args:
      examples: arrays of raw examples, in the order of the reading.
      num_shards: among how many they are dealt.
      size: raw examples of a window.
    """

    def __init__(self, examples: Iterator[np.ndarray], num_shards: int, size: int):
        self._examples, self._num_shards = examples, num_shards
        self._size, self._most = size, max(2 * size, _WAITING)
        self._held: dict[int, list[np.ndarray]] = {shard: [] for shard in range(num_shards)}
        self._begun: set[int] = set()
        self._read, self._ended, self._lock = 0, False, threading.Lock()

    def begin(self, shard: int) -> bool:
        """Returns whether a shard may take its windows from here: no one has, and none is gone."""
        with self._lock:
            if shard in self._begun or shard not in self._held:
                return False
            self._begun.add(shard)
            return True

    def window(self, shard: int) -> np.ndarray | None:
        """Returns a shard's next window, empty at the end; None if the shard was given up."""
        with self._lock:
            if shard not in self._held:
                return None
            while not self._ended and self._num_held(shard) < self._size:
                self._deal(wanted=shard)
            held = self._held[shard]
            rows = np.concatenate(held) if held else np.empty((0, 1), object)
            self._held[shard] = [rows[self._size :]]
            return rows[: self._size]

    def _num_held(self, shard: int) -> int:
        return sum(map(len, self._held[shard]))

    def _deal(self, *, wanted: int) -> None:
        """Reads some more."""
        rows = next(self._examples, None)
        if rows is None:
            self._ended = True
            return
        for shard in list(self._held):
            first = (shard - self._read) % self._num_shards
            self._held[shard].append(rows[first :: self._num_shards])
            most = self._most * (4 if shard in self._begun else 1)
            if shard != wanted and self._num_held(shard) > most:
                del self._held[shard]
        self._read += len(rows)
