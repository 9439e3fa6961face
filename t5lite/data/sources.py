"""Where examples come from: what a source is, and arrays in memory.

A source gives each of a fixed number of shards the same raw examples in the same order on every
pass, in windows; and it turns a window, shuffled by whoever asked, into tokenised examples. Both
are repeatable, which is all that resuming needs: nothing of TensorFlow's state is ever saved.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from t5lite.errors import InputError

Example = dict[str, np.ndarray]


class NoSplit(InputError):
    """There is no such split, or it is empty: a mixture does without, where it can."""


class Source(Protocol):
    """Raw examples by shard, and what becomes of them.

    It may have `content`, JSON: what the name leaves open, and must be the same to resume.
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
        self, *, shard: int, num_shards: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields one pass over a shard's raw examples, from window `start` to the end.

        Args:
          shard: in `[0, num_shards)`. With fewer raw examples than shards in all, every shard has
            all of them; otherwise every raw example is in exactly one shard.
          num_shards: a part of the order; never the number of hosts.
          start: windows to skip.
          size: raw examples in a window; the last one of a pass may have fewer.

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


class ArraySource:
    """Examples that are arrays already. Needs no TensorFlow."""

    def __init__(self, name: str, arrays: Sequence[Mapping[str, np.ndarray]]):
        self.name, self.num_examples = name, len(arrays)
        self._raw = np.empty(len(arrays), object)
        for i, example in enumerate(arrays):
            self._raw[i] = {key: np.asarray(value) for key, value in example.items()}

    @functools.cached_property
    def content(self) -> str:
        """Hex digest of all arrays."""
        digest = hashlib.sha256()
        for example in self._raw:
            for name, values in example.items():
                digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
                digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def windows(
        self, *, shard: int, num_shards: int, start: int, size: int
    ) -> Iterator[np.ndarray]:
        """Yields a shard's windows; see `Source.windows`."""
        return dealt(self._raw, shard, num_shards, start, size)

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the arrays as they are."""
        del seed
        return iter(window)


def dealt(
    raw: np.ndarray, shard: int, num_shards: int, start: int, size: int
) -> Iterator[np.ndarray]:
    """Yields windows of every `num_shards`-th example; of all, if there are not enough to deal."""
    mine = raw[shard::num_shards] if len(raw) >= num_shards else raw
    return (mine[at : at + size] for at in range(start * size, len(mine), size))
