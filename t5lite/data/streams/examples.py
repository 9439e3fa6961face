"""Endless streams of one shard's examples, with a tiny state.

The state is a few numbers, valid JSON: `load` redoes the work since the start of the window and
skips what was delivered. A stream is a function of its source, seed and shard alone, never of
hosts, threads or time.
"""

import logging
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np

from t5lite.data.order import generator
from t5lite.data.sources import Example, Source, count_of
from t5lite.errors import InputError

_ORDER, _SOURCE, _PREPARE, MIX = range(4)  # uses of randomness, in its keys
# Raw examples, at least and at most, after which preparing is known to drop all: it may by chance.
_FEWEST_FRUITLESS, _FRUITLESS = 500, 10_000
_FRUITLESS_PASSES = 1000  # the same, whatever number of examples the source claims

_log = logging.getLogger(__name__)
Prepare = Callable[[Iterator[Example], np.random.Generator], Iterator[Example]]


class Stream(Protocol):
    """A resumable iterator of prepared examples.

    Attributes:
      read: raw examples read since the beginning of the run.
      pass_size: raw examples of this shard in an epoch, on average over the shards, or None.
      passes: completed passes over the shard.
      vanished: raw examples that the objective dropped, since the start or the last load.
    """

    @property
    def read(self) -> int: ...

    @property
    def pass_size(self) -> float | None: ...

    @property
    def passes(self) -> int: ...

    @property
    def vanished(self) -> int: ...

    def __iter__(self) -> Iterator[Example]: ...

    def __next__(self) -> Example: ...

    def state(self) -> Any:
        """Returns the position after the last example, as JSON."""

    def load(self, state: Any) -> None:
        """Moves to a position of `state`."""

    def begin(self, passes: int) -> None:
        """Moves to the start of the pass number `passes`."""


class ExampleStream:
    """Prepared examples of one shard of one source, pass after pass; see `Stream`.

    Raw examples are read in windows, each shuffled and prepared with random generators keyed by
    (seed, source, shard, pass, window), so that any window can be redone.

    Args:
      prepare: makes trainable examples from tokenised ones, with a generator.
      shard: in `[0, num_shards)`.
      window: raw examples, > 0, that are shuffled together.
      repeat: whether passes repeat.
    """

    def __init__(
        self,
        source: Source,
        prepare: Prepare,
        *,
        shard: int = 0,
        num_shards: int = 1,
        seed: int = 0,
        window: int = 1024,
        repeat: bool = True,
    ):
        self._source, self._prepare = source, prepare
        self._shard, self._num_shards, self._seed = shard, num_shards, seed
        self._size, self._repeat = window, repeat
        self._total = count_of(source)
        self.pass_size = self._total / num_shards if self._total else None
        self.load([0, 0, 0, 0])

    def state(self) -> list[int]:
        """Returns `[pass, window, examples delivered from it, raw examples read before it]`."""
        return [self.passes, self._window, self._emitted, self._before]

    def load(self, state: list[int]) -> None:
        """Moves to a position of `state`; work is done when an example is needed."""
        self.passes, self._window, self._emitted, self._before = (
            state if len(state) == 4 else self._since_format_1(*state)
        )
        self._raw_windows: Iterator[np.ndarray] | None = None
        self._examples: Iterator[Example] | None = None
        self._num_raw = self._num_read = 0  # of the window
        # Since the last example: raw examples, whole passes, and passes that read anything.
        self._fruitless = self._fruitless_passes = self._fruitless_reads = 0
        self._pass_is_fruitful = bool(self._window or self._emitted)
        self.vanished = 0

    def begin(self, passes: int) -> None:
        self.load([passes, 0, 0, round(passes * (self.pass_size or 0))])

    @property
    def read(self) -> int:
        return self._before + min(self._num_read, self._num_raw)

    def __iter__(self) -> "ExampleStream":
        return self

    def __next__(self) -> Example:
        while True:
            if self._examples is None:
                self._examples = islice(self._prepared(self._next_raw()), self._emitted, None)
            example = next(self._examples, None)
            if example is not None:
                self._emitted += 1
                self._fruitless = self._fruitless_passes = self._fruitless_reads = 0
                self._pass_is_fruitful = True
                return example
            self._before += self._num_raw
            self._fruitless += 0 if self._emitted else self._num_raw
            self._examples = None
            self._window, self._emitted, self._num_raw, self._num_read = self._window + 1, 0, 0, 0

    def _next_raw(self) -> np.ndarray:
        """Returns the raw examples of the present window, or of the next pass's first one."""
        key = {"shard": self._shard, "num_shards": self._num_shards}
        while True:
            if self._raw_windows is None:
                if self._window and not getattr(self._source, "seekable", True):
                    _log.info(
                        "%s cannot seek: shard %d reads its first %d examples again to resume",
                        *(self._source.name, self._shard, self._window * self._size),
                    )
                seed, start, size = self._seed, self._window, self._size
                windows = self._source.windows(
                    **key, epoch=self.passes, seed=seed, start=start, size=size
                )
                self._raw_windows = iter(windows)
            raw = next(self._raw_windows, None)
            if raw is not None:
                return raw
            if not self._repeat:
                raise StopIteration
            self._fruitless_passes += not self._pass_is_fruitful
            self._fruitless_reads += not self._pass_is_fruitful and self._window > 0
            self._pass_is_fruitful = False
            if self._is_hopeless():
                raise InputError(self._nothing())
            self.passes, self._window, self._raw_windows = self.passes + 1, 0, None
            if next_epoch := getattr(self._source, "next_epoch", None):
                self.passes = next_epoch(epoch=self.passes, **key)

    def _prepared(self, raw: np.ndarray) -> Iterator[Example]:
        key = (self._seed, self._source.name, self._shard, self.passes, self._window)
        self._num_raw = len(raw)
        raw = raw[generator(_ORDER, *key).permutation(len(raw))]
        examples = self._source.examples(raw, seed=int(generator(_SOURCE, *key).integers(2**30)))
        fruitful = True

        def counted() -> Iterator[Example]:
            nonlocal fruitful
            for example in examples:
                self.vanished += not fruitful
                self._num_read += 1
                fruitful = False
                yield example
            self.vanished += not fruitful

        for example in self._prepare(counted(), generator(_PREPARE, *key)):
            fruitful = True
            yield example

    def _is_hopeless(self) -> bool:
        """Whether further passes would yield nothing, like the last ones."""
        if not self._fruitless:  # the shard has no example
            return self._fruitless_passes > self._num_shards
        # With few examples a shard has others in the next pass, which may be useful.
        if self._total is None:
            return self._fruitless_passes > 0
        enough = min(max(20 * self._total, _FEWEST_FRUITLESS), _FRUITLESS)
        if self._fruitless_reads >= _FRUITLESS_PASSES:
            return True
        return self._fruitless_passes > 0 and self._fruitless >= enough

    def _nothing(self) -> str:
        if self._num_shards == 1:
            return f"{self._source.name} has no examples, or preprocessing left none"
        return (
            f"shard {self._shard} of {self._num_shards} of {self._source.name} has no examples, "
            "or preprocessing left none; set a smaller num_shards"
        )

    def _since_format_1(self, epoch: int, window: int, emitted: int) -> list[int]:
        """Returns about the position of a format-1 state, without an order across windows.

        In that format a shard had the same examples in every epoch, and all of them if there were
        fewer than shards.
        """
        if self._total is None or self.pass_size is None:
            return [epoch, window, emitted, 0]
        few = self._total < self._num_shards
        per_pass = self._total if few else len(range(self._shard, self._total, self._num_shards))
        read = epoch * per_pass + window * self._size + min(emitted, self._size)
        passes = int(read / self.pass_size)
        window, emitted = divmod(max(read - math.ceil(passes * self.pass_size), 0), self._size)
        return [passes, window, emitted, read - emitted]
