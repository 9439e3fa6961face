"""Where examples come from: what a source is, and arrays in memory.

A source deals the raw examples of each epoch, in an order of the epoch's own, to a fixed number of
shards, in windows; and it turns a window into tokenised examples. Both are functions of their
arguments, which is all that resuming needs: nothing of TensorFlow's state is ever saved.
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
    """There is no such split, or it is empty: a mixture does without, where it can."""


class Component(NamedTuple):
    """A source of a dataset, and how it is used.

    Attributes:
      source: the raw examples.
      rate: of draws, relative to the other components.
      objective: prepares its examples.
      part: of a mixture that it belongs to, by name.
      order: which of its orders, where several components have one source.
    """

    source: "Source"
    rate: float
    objective: HostHalf
    part: str | None = None
    order: int = 0


class Source(Protocol):
    """Raw examples by shard, and what becomes of them. Several threads may read different shards.

    It may have `content`, JSON: what the name leaves open, and must be the same to resume;
    `seekable`, whether it begins at any window at no cost; False if it must read all before it;
    `waits`, whether it mostly waits for TensorFlow or a remote disk, so that shards are prepared in
    threads; without it they are prepared in one, which is faster for all that Python does;
    `count() -> int | None`, where counting the raw examples takes more than knowing `num_examples`;
    and `next_epoch(*, shard, num_shards, epoch) -> int`, the first epoch from `epoch` on in which a
    shard has examples, where that saves trying.
    """

    @property
    def name(self) -> str:
        """Says what is read, in messages and as a part of every random key."""
        ...

    @property
    def num_examples(self) -> int | None:
        """How many raw examples there are; None if that is unknown before reading them."""
        ...

    def windows(
        self, *, shard: int, num_shards: int, epoch: int, seed: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's raw examples of one epoch, from window `start` to the end.

        Together the shards have every raw example once in each epoch. With fewer examples than
        shards some have none, but not the same ones in every epoch: see `dealt`.

        Args:
          shard: in `[0, num_shards)`.
          num_shards: a part of the order; never the number of hosts.
          epoch: from 0; each has an order of its own, as far as the source can be reordered.
          seed: of the orders.
          start: windows to skip, at no cost where the source can be read at any place.
          size: raw examples in a window; the last one of an epoch may have fewer.

        Yields:
          Object arrays whose first axis counts raw examples.
        """
        ...

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the tokenised examples of a window of raw ones: 1-D arrays by feature.

        Args:
          window: raw examples, in the order in which to take them.
          seed: in `[0, 2**30)`; all randomness comes from it.
        """
        ...


def count_of(source: Source) -> int | None:
    """Returns how many raw examples a source has; None if they are not counted."""
    count = getattr(source, "count", None)  # a user's own source may lack both
    found: int | None = count() if count else getattr(source, "num_examples", None)
    return found


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
    """Yields windows of example numbers, for sources that can be read at any place.

    The epochs' orders follow one another in one endless sequence, of which every `num_shards`-th
    example is a shard's. So shards are never more than one example apart, and what one batch takes
    from all of them is a stretch of that sequence, also where an epoch ends in it.

    Args:
      num_examples: in all, >= 0.
      name: of the source, a part of the order's key.
      shard: as for `Source.windows`; so too all that follow.
      num_shards: likewise.
      epoch: likewise.
      seed: likewise.
      start: likewise.
      size: likewise.
    """
    first = _first_place(num_examples, name, shard, num_shards, epoch)
    count = len(range(first, num_examples, num_shards))
    for at in range(start * size, count, size):
        places = first + num_shards * np.arange(at, min(at + size, count))
        yield permuted(places, num_examples, seed, name, epoch)


def next_epoch(num_examples: int, name: str, *, shard: int, num_shards: int, epoch: int) -> int:
    """Returns the first epoch from `epoch` on in which `dealt` has examples for a shard."""
    place = _first_place(num_examples, name, shard, num_shards, epoch)
    return epoch + place // num_examples if num_examples else epoch


def _first_place(num_examples: int, name: str, shard: int, num_shards: int, epoch: int) -> int:
    """Returns where in an epoch a shard's first example stands; beyond its end if it has none."""
    # By name, so that small parts of a mixture do not all begin at shard 0.
    return (shard + zlib.crc32(name.encode()) - epoch * num_examples) % num_shards


class NumberedSource:
    """Base of sources whose raw examples are numbers, any of which can be read at once.

    Attributes:
      seekable: that it is so.
      name: as for `Source`; set by the class that derives from this one.
      num_examples: likewise.
    """

    seekable = True
    name: str
    num_examples: int

    def windows(self, **which: int) -> Iterator[np.ndarray]:
        """Yields a shard's windows of example numbers; see `Source.windows`."""
        return dealt(self.num_examples, self.name, **which)

    def next_epoch(self, **which: int) -> int:
        """Returns the next epoch in which a shard has examples; see `Source`."""
        return next_epoch(self.num_examples, self.name, **which)
