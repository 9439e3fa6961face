"""One reading of a source without random access, dealt to many shards."""

import threading
from collections.abc import Iterator

import numpy as np

_WAITING = 256  # raw examples that a shard may leave waiting, at least


class Dealing:
    """Deals the examples of one reading to shards, every `num_shards`-th one to each.

    Shards read at about the same speed, so that few examples wait. Shards of other processes, and
    much slower ones, are dropped. A window has `size` examples.
    """

    def __init__(self, examples: Iterator[np.ndarray], num_shards: int, size: int):
        self._examples, self._num_shards = examples, num_shards
        self._size, self._most = size, max(2 * size, _WAITING)
        self._waiting: dict[int, list[np.ndarray]] = {shard: [] for shard in range(num_shards)}
        self._joined: set[int] = set()
        self._num_read, self._ended, self._lock = 0, False, threading.Lock()

    def join(self, shard: int) -> bool:
        """Returns whether a shard can read its windows here: it has not before, nor was dropped."""
        with self._lock:
            if shard in self._joined or shard not in self._waiting:
                return False
            self._joined.add(shard)
            return True

    def window(self, shard: int) -> np.ndarray | None:
        """Returns a shard's next window, empty at the end; None if the shard was dropped."""
        with self._lock:
            if shard not in self._waiting:
                return None
            while not self._ended and self._num_waiting(shard) < self._size:
                self._deal(reader=shard)
            parts = self._waiting[shard]
            rows = np.concatenate(parts) if parts else np.empty((0, 1), object)
            self._waiting[shard] = [rows[self._size :]]
            return rows[: self._size]

    def _num_waiting(self, shard: int) -> int:
        return sum(map(len, self._waiting[shard]))

    def _deal(self, *, reader: int) -> None:
        rows = next(self._examples, None)
        if rows is None:
            self._ended = True
            return
        for shard in list(self._waiting):
            first = (shard - self._num_read) % self._num_shards
            self._waiting[shard].append(rows[first :: self._num_shards])
            most = self._most * (4 if shard in self._joined else 1)
            if shard != reader and self._num_waiting(shard) > most:
                del self._waiting[shard]
        self._num_read += len(rows)
