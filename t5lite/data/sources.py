"""Sources of examples.

A source deals the raw examples of each epoch, in random order, to a fixed number of shards, in
windows; and it turns a window into tokenised examples. Both are pure functions, so that resuming
needs no state of a source.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from t5lite.data.order import permuted
from t5lite.errors import InputError
from t5lite.rows import HostHalf

Example = dict[str, np.ndarray]


class NoSplit(InputError):
    """A split is missing or empty; mixtures skip the part, except in training."""


class Component(NamedTuple):
    """A source of a dataset, its rate and its objective.

    Attributes:
      source: of the raw examples.
      rate: of draws, relative to the other components.
      objective: prepares its examples.
      part: name of its part of a mixture.
      order: added to the seed: 1, 2, … where several components have one source.
    """

    source: "Source"
    rate: float
    objective: HostHalf
    part: str | None = None
    order: int = 0


class Source(Protocol):
    """Raw examples by shard, and their tokenised form. Threads may read different shards.

    Optional members:
      content: JSON that, beside the name, must be the same to resume.
      seekable: False if a window takes reading all windows before it.
      waits: True if it mostly waits, for TensorFlow or a remote disk, so that threads prepare the
        shards; one thread is faster where Python does the work.
      count() -> int | None: the number of raw examples, where `num_examples` does not know it.
      next_epoch(*, shard, num_shards, epoch) -> int: the first epoch, from `epoch` on, in which a
        shard has examples.
    """

    @property
    def name(self) -> str:
        """Name of the data, in messages and in every random key."""
        ...

    @property
    def num_examples(self) -> int | None:
        """Number of raw examples; None if unknown before reading them."""
        ...

    def windows(
        self, *, shard: int, num_shards: int, epoch: int, seed: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's raw examples of one epoch, from window `start` to the end.

        Together the shards have every raw example once in each epoch. With fewer examples than
        shards some have none, but not the same ones in every epoch: see `dealt`.

        Args:
          shard: in `[0, num_shards)`.
          num_shards: decides the order with the seed; never the number of hosts.
          epoch: from 0; each has another order, as far as the source can be reordered.
          seed: of the orders.
          start: windows to skip.
          size: raw examples in a window; the last one of an epoch may have fewer.
        Yields: object arrays whose first axis counts raw examples.
        """
        ...

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the tokenised examples of a window of raw ones: 1-D arrays by feature.

        The `seed`, in `[0, 2**30)`, decides all randomness.
        """
        ...


def count_of(source: Source) -> int | None:
    """Returns the number of raw examples of a source; None if they are not counted."""
    count = getattr(source, "count", None)  # a user's own source may lack both
    return count() if count else getattr(source, "num_examples", None)  # type: ignore[no-any-return]


def dealt(
    num_examples: int,
    name: str,
    *,
    shard: int,
    num_shards: int,
    epoch: int,
    seed: int,
    start: int,
    size: int,
) -> Iterator[np.ndarray]:
    """Yields a shard's windows of example numbers, for sources with random access.

    The epochs' orders follow one another in one endless sequence, of which every `num_shards`-th
    example is a shard's. So shards are never more than one example apart, and the examples of one
    batch are contiguous in that sequence, across epochs too. The `name` of the source is part of
    the order's key; for the other arguments see `Source.windows`.
    """
    first = _first_position(num_examples, name, shard, num_shards, epoch)
    count = len(range(first, num_examples, num_shards))
    for at in range(start * size, count, size):
        positions = first + num_shards * np.arange(at, min(at + size, count))
        yield permuted(positions, num_examples, seed, name, epoch)


def next_epoch(num_examples: int, name: str, *, shard: int, num_shards: int, epoch: int) -> int:
    """Returns the first epoch from `epoch` on in which `dealt` has examples for a shard."""
    position = _first_position(num_examples, name, shard, num_shards, epoch)
    return epoch + position // num_examples if num_examples else epoch


def _first_position(num_examples: int, name: str, shard: int, num_shards: int, epoch: int) -> int:
    """Returns a shard's first position in an epoch's order; beyond its end if it has none."""
    # By name, so that small parts of a mixture do not all begin at shard 0.
    return (shard + zlib.crc32(name.encode()) - epoch * num_examples) % num_shards


class NumberedSource:
    """Base of sources whose raw examples are numbers, with random access.

    Attributes:
      name, num_examples: as for `Source`; set by the subclass.
    """

    seekable = True
    name: str
    num_examples: int

    def windows(self, **key: int) -> Iterator[np.ndarray]:
        return dealt(self.num_examples, self.name, **key)

    def next_epoch(self, **key: int) -> int:
        return next_epoch(self.num_examples, self.name, **key)
