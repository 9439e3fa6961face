"""Validation batches: one pass over the shards of a process, the same each time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from t5lite.data.batches import Batch

_CACHED_BYTES = 2**28  # of the batches of all processes together
# A batch, and the fraction of the split that was read by then; None if it is not counted.
Batches = Iterator[tuple[Batch, float | None]]


class Validation:
    """Validation batches of one process; a new pass whenever it is iterated over.

    Small splits stay in memory after the first pass.

    Args:
      part: fraction of a batch's rows that this process makes.
      num_examples: of the split, before the objective; None if they are not counted.
    Attributes:
      share: fraction of the split, in `[0, 1]`, that the latest pass has read so far, estimated
        from this process's shards; None if unknown.
    """

    def __init__(self, begin: Callable[[], Batches], *, part: float, num_examples: int | None):
        self._begin, self._part = begin, part
        self._batches: list[Batch] | None = None
        self.num_examples, self.share = num_examples, None if num_examples is None else 0.0

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is not None:
            yield from self._batches
            return
        batches: list[Batch] = []
        # The same on all processes, which must all cache or not.
        room = _CACHED_BYTES * self._part
        for batch, share in self._begin():
            self.share = share
            room -= sum(values.nbytes for values in batch.values())
            if room >= 0:
                batches.append(batch)
            else:
                batches.clear()
            yield batch
        if room >= 0:
            self._batches = batches


def joined(parts: Sequence[Mapping[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Returns `[parts * size, ...]`: each part's rows, filled up to `size` with rows of zeros."""
    return {
        name: np.concatenate([filled_up(part[name], size) for part in parts]) for name in parts[0]
    }


def filled_up(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns `[count, ...]`: the rows, followed by zeros."""
    missing = np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, missing])


def num_rows(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))
