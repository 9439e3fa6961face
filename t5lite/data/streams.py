"""Endless streams with a tiny state: examples of one shard, mixtures of them, and rows.

The state of a stream is a few integers, valid JSON, that say how to get there again: `load` redoes
the work since the last border (of a window, of a block) and drops what was given out already. A
stream is a function of the source, the seed and its shard alone, never of hosts, threads or time.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from t5lite.data.packing import pack, pad, pad_with_segments
from t5lite.data.sources import Example, Source
from t5lite.errors import InputError

# What randomness is for, so that no two uses share a key.
_ORDER, _SOURCE, _PREPARE, _MIX = range(4)
_CHOICES = 1024

Prepare = Callable[[Iterator[Example], np.random.Generator], Iterator[Example]]


class Stream(Protocol):
    """An iterator of prepared examples that can be put where it once was."""

    def __iter__(self) -> Iterator[Example]: ...

    def __next__(self) -> Example: ...

    def state(self) -> Any:
        """Returns the position behind the last example, as JSON."""
        ...

    def load(self, state: Any) -> None:
        """Moves to a position that `state` returned."""
        ...

    @property
    def epoch(self) -> int:
        """The passes that were completed."""
        ...

    @property
    def part(self) -> float | None:
        """The share of the pass under way, in `[0, 1]`, that was read; None if unknown."""
        ...


class ExampleStream:
    """Prepared examples of one shard of one source, pass after pass.

    Raw examples are read in windows. A window is shuffled and prepared on its own, with random
    generators keyed by (seed, source, shard, pass, window), so that any window can be redone.

    Args:
      source: the raw examples.
      prepare: makes trainable examples from tokenised ones, with the generator it is given.
      shard: in `[0, num_shards)`.
      num_shards: the number of streams that share the source.
      seed: any integer.
      window: raw examples, > 0, that are shuffled together.
      shuffle: whether they are.
      repeat: whether another pass follows a pass.
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
        shuffle: bool = True,
        repeat: bool = True,
    ):
        self._source, self._prepare = source, prepare
        self._shard, self._num_shards, self._seed = shard, num_shards, seed
        self._size, self._shuffle, self._repeat = window, shuffle, repeat
        total = getattr(source, "num_examples", None)  # somebody's own source may not know
        self._shard_size = total and (
            len(range(shard, total, num_shards)) if total >= num_shards else total
        )
        self.load([0, 0, 0])

    def state(self) -> list[int]:
        """Returns `[epoch, window, examples given out of the window]`."""
        return [self.epoch, self._window, self._emitted]

    def load(self, state: list[int]) -> None:
        """Moves to a position that `state` returned; the work is done when an example is needed."""
        self.epoch, self._window, self._emitted = state
        self._raw_windows: Iterator[np.ndarray] | None = None
        self._examples: Iterator[Example] | None = None
        self._pass_is_empty = self._window == 0 and self._emitted == 0
        self._read = 0  # of the window

    @property
    def part(self) -> float | None:
        """The share of this pass that was read; see `Stream`."""
        if not self._shard_size:
            return None
        read = self._window * self._size + min(self._read, self._size)
        return min(read / self._shard_size, 1.0)

    def __iter__(self) -> "ExampleStream":
        return self

    def __next__(self) -> Example:
        while True:
            if self._examples is None:
                self._examples = islice(self._prepared(self._next_raw()), self._emitted, None)
            example = next(self._examples, None)
            if example is not None:
                self._emitted += 1
                self._pass_is_empty = False
                return example
            self._examples = None
            self._window, self._emitted, self._read = self._window + 1, 0, 0

    def _next_raw(self) -> np.ndarray:
        """Returns the raw examples of the window that the state names, or of the next pass."""
        while True:
            if self._raw_windows is None:
                self._raw_windows = iter(
                    self._source.windows(
                        shard=self._shard,
                        num_shards=self._num_shards,
                        start=self._window,
                        size=self._size,
                    )
                )
            raw = next(self._raw_windows, None)
            if raw is not None:
                return raw
            if self._pass_is_empty:
                raise InputError(self._nothing())
            if not self._repeat:
                raise StopIteration
            self.load([self.epoch + 1, 0, 0])

    def _prepared(self, raw: np.ndarray) -> Iterator[Example]:
        key = (self._seed, self._source.name, self._shard, self.epoch, self._window)
        if self._shuffle:
            raw = raw[generator(_ORDER, *key).permutation(len(raw))]
        examples = self._source.examples(raw, seed=int(generator(_SOURCE, *key).integers(2**30)))
        return iter(self._prepare(self._counted(examples), generator(_PREPARE, *key)))

    def _counted(self, examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            self._read += 1
            yield example

    def _nothing(self) -> str:
        if self._num_shards == 1:
            return f"{self._source.name} has no examples, or preprocessing left none"
        return (
            f"shard {self._shard} of {self._num_shards} of {self._source.name} has no examples, "
            "or preprocessing left none; set a smaller num_shards"
        )


class MixtureStream:
    """Examples of several streams, drawn with given rates; or each once, taking turns.

    Args:
      streams: what to draw from.
      rates: relative, > 0; None: turns, until all streams have ended.
      seed: any integer.
      shard: makes the draws of two shards differ.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        rates: Sequence[float] | None,
        *,
        seed: int = 0,
        shard: int = 0,
    ):
        self._streams, self._key = list(streams), (seed, "mixture", shard)
        self._bounds = None if rates is None else np.cumsum(rates) / np.sum(rates)
        self._count, self._choices = 0, np.empty(0, np.int64)

    @property
    def epoch(self) -> int:
        """The passes completed by the stream that is furthest behind."""
        return min(stream.epoch for stream in self._streams)

    @property
    def part(self) -> float | None:
        """The share of its pass that the stream that is furthest behind has read."""
        return slowest(self._streams)[1]

    def state(self) -> dict[str, Any]:
        """Returns the number of draws and the streams' states."""
        return {"count": self._count, "streams": [stream.state() for stream in self._streams]}

    def load(self, state: dict[str, Any]) -> None:
        """Moves to a position that `state` returned."""
        self._count, self._choices = state["count"], np.empty(0, np.int64)
        for stream, each in zip(self._streams, state["streams"], strict=True):
            stream.load(each)

    def __iter__(self) -> "MixtureStream":
        return self

    def __next__(self) -> Example:
        for _ in self._streams:  # each may have ended, where they do not repeat
            choice = self._next_choice()
            self._count += 1
            example = next(self._streams[choice], None)
            if example is not None:
                return example
        raise StopIteration

    def _next_choice(self) -> int:
        """Returns draw number `count`, which depends on nothing but the key and the number."""
        if self._bounds is None:
            return self._count % len(self._streams)
        block, at = divmod(self._count, _CHOICES)
        if at == 0 or not self._choices.size:
            uniform = generator(_MIX, *self._key, block).random(_CHOICES)
            # min: the last bound may fall short of 1 by rounding.
            choices = np.searchsorted(self._bounds, uniform, side="right")
            self._choices = np.minimum(choices, len(self._streams) - 1)
        return int(self._choices[at])


class RowStream:
    """Rows of a stream's examples, packed or one example to a row.

    Examples are packed in blocks that would fill about `block_rows` rows, every block on its own:
    the state is the stream's at the start of the block, and the rows given out of it.

    Args:
      examples: the stream.
      lengths: the features to take and the length of their rows, in tokens.
      packed: whether a row may hold several examples.
      segments: whether rows that are not packed say which places hold tokens, too.
      block_rows: larger packs tighter and starts later.

    Attributes:
      epoch: the passes that the examples had completed at the start of the block.
      part: the share of the next one that they had read by then; None if unknown.
    """

    def __init__(
        self,
        examples: Stream,
        lengths: Mapping[str, int],
        *,
        packed: bool,
        segments: bool = False,
        block_rows: int = 16,
    ):
        self._examples, self._lengths = examples, dict(lengths)
        self._packed, self._block_rows = packed, block_rows
        self._to_rows = pack if packed else pad_with_segments if segments else pad
        self.load({"block": examples.state(), "rows": 0, "part": examples.part})

    def state(self) -> dict[str, Any]:
        """Returns the position behind the last row, as JSON."""
        return {"block": self._block_start, "rows": self._taken, "part": self.part}

    def load(self, state: dict[str, Any]) -> None:
        """Moves to a position that `state` returned; the work is done when a row is needed."""
        self._examples.load(state["block"])
        self._start_block(taken=state["rows"])
        self.part = state["part"]  # the stream finds out only when it reads

    def _start_block(self, *, taken: int) -> None:
        self._block: dict[str, np.ndarray] | None = None
        self._block_start, self._taken = self._examples.state(), taken
        self.epoch = self._examples.epoch
        part = self._examples.part
        # Few digits, as states are small; downwards, as nothing may look complete before it is.
        self.part = None if part is None else math.floor(1e4 * part) / 1e4

    def take(self, count: int) -> dict[str, np.ndarray]:
        """Returns the next `[count, length]` rows by name; fewer if the stream has ended."""
        parts, missing = [], count
        while missing:
            if self._block is None:
                self._block = self._next_block()
            rows = {
                name: value[self._taken : self._taken + missing]
                for name, value in self._block.items()
            }
            num_rows = len(next(iter(rows.values())))
            if num_rows:
                parts.append(rows)
                self._taken += num_rows
                missing -= num_rows
            elif not self._taken:
                break  # an empty block: the end
            else:
                self._start_block(taken=0)
        return concatenate(parts) if parts else self._to_rows([], self._lengths)

    def _next_block(self) -> dict[str, np.ndarray]:
        block: list[Example] = []
        filled = 0.0
        # The second bound is for examples of next to nothing.
        while filled < self._block_rows and len(block) < 64 * self._block_rows:
            example = next(self._examples, None)
            if example is None:
                break
            block.append(example)
            filled += self._share(example)
        return self._to_rows(block, self._lengths)

    def _share(self, example: Example) -> float:
        """Returns how much of a row an example takes, in its tightest feature."""
        if not self._packed:
            return 1.0
        shares = (
            example[name].size / length
            for name, length in self._lengths.items()
            if name in example  # a missing one is packing's to report
        )
        return max(shares, default=1.0)


def slowest(streams: Iterable[Any]) -> tuple[int, float | None]:
    """Returns the fewest passes that any stream has completed, and the part beyond; None: unknown.

    Args:
      streams: with `epoch` and `part`.
    """
    positions = [(stream.epoch, stream.part) for stream in streams]
    epoch = min(epoch for epoch, _ in positions)
    if any(part is None for _, part in positions):
        return epoch, None
    return epoch, min(each - epoch + part for each, part in positions)


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins rows of the same names, `[n, ...]` each, along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def generator(*key: int | str) -> np.random.Generator:
    """Returns the random generator that belongs to a key."""
    return np.random.default_rng(
        [zlib.crc32(part.encode()) if isinstance(part, str) else part % 2**64 for part in key]
    )
