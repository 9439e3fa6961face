"""Validation batches: one pass over the shards of a process, the same each time."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from t5lite.data.batches import Batch

_KEPT_BYTES = 2**28  # of the batches of all processes together
# A batch, and the share of the split that was read by then; None if it is not counted.
Batches = Iterator[tuple[Batch, float | None]]


class Validation:
    """Validation batches of one process; begins anew whenever it is iterated over.

    What all processes hold together is kept after the first pass if it is small.

    Args:
      begin: starts a pass.
      part: the share of a batch's rows that this process makes.
      num_examples: of the split, before the objective; None if they are not counted.

    Attributes:
      share: of the split, in `[0, 1]`, that the latest pass has read so far, judged by this
        process's shards; None if unknown.
    """

    def __init__(self, begin: Callable[[], Batches], *, part: float, num_examples: int | None):
        self._begin, self._part = begin, part
        self._kept: list[Batch] | None = None
        self.num_examples, self.share = num_examples, None if num_examples is None else 0.0

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        batches: list[Batch] = []
        # The same on all processes: they must not differ in what they keep.
        room = _KEPT_BYTES * self._part
        for batch, share in self._begin():
            self.share = share
            room -= sum(values.nbytes for values in batch.values())
            if room >= 0:
                batches.append(batch)
            else:
                batches.clear()
            yield batch
        if room >= 0:
            self._kept = batches


def joined(parts: Sequence[Mapping[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Returns `[parts * size, ...]`: each part's rows, filled up with rows of zeros.

    Args:
      parts: at most `size` rows each, by name.
      size: rows of a part.
    """
    return {
        name: np.concatenate([filled_up(part[name], size) for part in parts]) for name in parts[0]
    }


def filled_up(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns `[count, ...]`: the rows, followed by zeros."""
    missing = np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)
    return np.concatenate([rows, missing])


def num_rows(rows: Mapping[str, np.ndarray]) -> int:
    """Returns how many rows there are of each name."""
    return len(next(iter(rows.values())))
