"""Endless streams with a tiny state: examples of one shard, mixtures of them, and rows.

The state of a stream is a few numbers, valid JSON, that say how to get there again: `load` redoes
the work since the last border (of a window, of a block) and drops what was given out already. A
stream is a function of the source, the seed and its shard alone, never of hosts, threads or time.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from t5lite.data.like_lengths import Groups, order_by_length
from t5lite.data.order import generator
from t5lite.data.packing import pack, pad, pad_with_segments
from t5lite.data.sources import Example, Source, count_of
from t5lite.errors import InputError

# What randomness is for, so that no two uses share a key.
_ORDER, _SOURCE, _PREPARE, _MIX = range(4)
_CHOICES = 1024
_DRAWS = 2**40  # more than a pass has
# Raw examples, enough to know that preparing leaves none: it may keep few, by chance.
_FEWEST_FRUITLESS, _FRUITLESS = 500, 10_000
_FRUITLESS_PASSES = 1000  # likewise, however many examples the source claims to have

Prepare = Callable[[Iterator[Example], np.random.Generator], Iterator[Example]]


class Stream(Protocol):
    """An iterator of prepared examples that can be put where it once was.

    Attributes:
      read: raw examples taken since the beginning of the run, whatever became of them.
      pass_size: raw examples of this shard in an epoch, on average over the shards; None if nobody
        has counted them.
      passes: completed ones, over all that this shard reads.
      vanished: raw examples of which the objective made nothing, since the start or the last load.
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
        ...

    def load(self, state: Any) -> None:
        """Moves to a position that `state` returned."""
        ...

    def begin(self, passes: int) -> None:
        """Moves to where so many passes are complete."""
        ...


class ExampleStream:
    """Prepared examples of one shard of one source, pass after pass; see `Stream`.

    Raw examples are read in windows. A window is shuffled and prepared on its own, with random
    generators keyed by (seed, source, shard, pass, window), so that any window can be redone.

    Args:
      source: the raw examples.
      prepare: makes trainable examples from tokenised ones, with the generator it is given.
      shard: in `[0, num_shards)`.
      num_shards: the number of streams that share the source.
      seed: any integer.
      window: raw examples, > 0, that are shuffled together.
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
        repeat: bool = True,
    ):
        self._source, self._prepare = source, prepare
        self._shard, self._num_shards, self._seed = shard, num_shards, seed
        self._size, self._repeat = window, repeat
        self._total = count_of(source)
        self.pass_size = self._total / num_shards if self._total else None
        self.load([0, 0, 0, 0])

    def state(self) -> list[int]:
        """Returns `[pass, window, examples given out of it, raw examples read before it]`."""
        return [self.passes, self._window, self._emitted, self._before]

    def load(self, state: list[int]) -> None:
        """Moves to a position that `state` returned; the work is done when an example is needed."""
        self.passes, self._window, self._emitted, self._before = (
            state if len(state) == 4 else self._since_format_1(*state)
        )
        self._raw_windows: Iterator[np.ndarray] | None = None
        self._examples: Iterator[Example] | None = None
        self._num_raw = self._num_read = 0  # of the window
        # Of late: raw examples, whole passes, and those of them that read anything.
        self._fruitless = self._fruitless_passes = self._fruitless_reads = 0
        self._pass_is_fruitful = bool(self._window or self._emitted)
        self.vanished = 0

    def begin(self, passes: int) -> None:
        """Moves to the start of a pass, from 0."""
        self.load([passes, 0, 0, round(passes * (self.pass_size or 0))])

    @property
    def read(self) -> int:
        """Raw examples taken; see `Stream`."""
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
        """Returns the raw examples of the window that the state names, or of the next pass."""
        while True:
            if self._raw_windows is None:
                self._raw_windows = iter(
                    self._source.windows(
                        shard=self._shard,
                        num_shards=self._num_shards,
                        epoch=self.passes,
                        seed=self._seed,
                        start=self._window,
                        size=self._size,
                    )
                )
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
                which = {"shard": self._shard, "num_shards": self._num_shards}
                self.passes = next_epoch(epoch=self.passes, **which)

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
        """Whether another pass, after those that gave nothing, would give nothing either."""
        if not self._fruitless:  # no example falls to this shard
            return self._fruitless_passes > self._num_shards
        # Of few examples a shard gets others in the next pass, one of which may be of use.
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
        """Returns about the position of a state that knew no order across windows.

        Then a shard's examples were the same in every epoch, and all of them where there were
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


class MixtureStream:
    """Examples of several streams, drawn with given rates; or each once; see `Stream`.

    An epoch of a mixture is as many raw examples as all its streams have together.

    Args:
      streams: what to draw from.
      rates: relative, > 0; None: in proportion to what the streams have, or turns where that is
        unknown, until all have ended.
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
        sizes = [stream.pass_size for stream in self._streams]
        self._sizes = [size for size in sizes if size is not None]
        self.pass_size = sum(self._sizes) if len(self._sizes) == len(sizes) else None
        self._begin_turns()

    @property
    def passes(self) -> int:
        """The passes that every stream has completed."""
        return min(stream.passes for stream in self._streams)

    @property
    def vanished(self) -> int:
        """Raw examples of which nothing was made, in all streams."""
        return sum(stream.vanished for stream in self._streams)

    def state(self) -> dict[str, Any]:
        """Returns the number of draws and the streams' states."""
        return {"count": self._count, "streams": [stream.state() for stream in self._streams]}

    def load(self, state: dict[str, Any]) -> None:
        """Moves to a position that `state` returned."""
        self._count, self._choices = state["count"], np.empty(0, np.int64)
        for stream, each in zip(self._streams, state["streams"], strict=True):
            stream.load(each)
        self._begin_turns()

    def begin(self, passes: int) -> None:
        """Moves all streams to the start of a pass of their own, with draws of its own."""
        self.load({**self.state(), "count": passes * _DRAWS})
        for stream in self._streams:
            stream.begin(passes)
        self._begin_turns()

    def __iter__(self) -> "MixtureStream":
        return self

    def __next__(self) -> Example:
        while self._turns:
            choice = self._turns[0][1] if self._bounds is None else self._next_choice()
            stream = self._streams[choice]
            before = stream.read
            example = next(stream, None)
            self._count += 1
            self.read += stream.read - before
            if example is not None:
                if self._bounds is None:
                    heapq.heapreplace(self._turns, (self._share_read(choice), choice))
                return example
            heapq.heappop(self._turns)  # with rates, no stream ends
        raise StopIteration

    def _next_choice(self) -> int:
        """Returns draw number `count`, which depends on nothing but the key and the number."""
        assert self._bounds is not None
        block, at = divmod(self._count, _CHOICES)
        if at == 0 or not self._choices.size:
            uniform = generator(_MIX, *self._key, block).random(_CHOICES)
            # min: the last bound may fall short of 1 by rounding.
            choices = np.searchsorted(self._bounds, uniform, side="right")
            self._choices = np.minimum(choices, len(self._streams) - 1)
        return int(self._choices[at])

    def _begin_turns(self) -> None:
        self.read = sum(stream.read for stream in self._streams)
        self._turns = [(self._share_read(number), number) for number in range(len(self._streams))]
        heapq.heapify(self._turns)

    def _share_read(self, number: int) -> float:
        """Returns how much of a stream would be read, next example included; or how often."""
        read = self._streams[number].read
        return read if self.pass_size is None else (read + 0.5) / self._sizes[number]


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
      like_lengths: of rows that are not packed: which features' lengths they are ordered by in a
        block, see `like_lengths`; () for the stream's own order.
      group_rows: neighbours in that order that stay together: those of one batch.
      seed: decides the order of the groups.

    Attributes:
      epoch: the passes over the data that the rows given out amount to, as every shard has its part
        of a pass; an integer, the completed ones, where nobody has counted the examples.
    """

    epoch: float

    def __init__(
        self,
        examples: Stream,
        lengths: Mapping[str, int],
        *,
        packed: bool,
        segments: bool = False,
        block_rows: int = 16,
        like_lengths: Groups = (),
        group_rows: int = 1,
        seed: int = 0,
    ):
        self._examples, self._lengths = examples, dict(lengths)
        self._like_lengths, self._group_rows, self._seed = like_lengths, group_rows, seed
        self._packed, self._block_rows = packed, block_rows
        self._to_rows = pack if packed else pad_with_segments if segments else pad
        self.load({"block": examples.state(), "rows": 0})

    @property
    def vanished(self) -> int:
        """Raw examples of which nothing was made, since the start or the last load."""
        return self._examples.vanished

    def state(self) -> dict[str, Any]:
        """Returns the position after the last row, as JSON."""
        position = {"block": self._block_start, "rows": self._taken, "epoch": self.epoch}
        return position | ({"number": self._number} if self._like_lengths else {})

    def load(self, state: dict[str, Any]) -> None:
        """Moves to a position that `state` returned; the work is done when a row is needed."""
        self._examples.load(state["block"])
        self._number = state.get("number", 0)
        self._start_block(taken=state["rows"])
        self.epoch = state.get("epoch", self.epoch)  # the stream finds out only when it reads

    def _start_block(self, *, taken: int) -> None:
        self._block: dict[str, np.ndarray] | None = None
        self._reads: list[int] = []  # by then, after each example of the block
        self._block_start, self._taken = self._examples.state(), taken
        self.epoch = self._epoch_at(self._examples.read)

    def _epoch_at(self, read: int) -> float:
        size = self._examples.pass_size
        return self._examples.passes if size is None else read / size

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
                self._note_epoch()
            elif not self._taken:
                break  # an empty block: the end
            else:
                self._number += 1
                self._start_block(taken=0)
        return concatenate(parts) if parts else self._to_rows([], self._lengths)

    def _next_block(self) -> dict[str, np.ndarray]:
        block: list[Example] = []
        filled, end = 0.0, None
        # The second bound is for examples of next to nothing.
        while filled < self._block_rows and len(block) < 64 * self._block_rows:
            example = next(self._examples, None)
            if example is None:
                break
            block.append(example)
            self._reads.append(self._examples.read)
            filled += self._share(example)
            end = self._end_of_pass() if end is None else end
            if end is not None and self._examples.read >= end:
                break
        if self._like_lengths and block:
            block = order_by_length(
                block,
                self._lengths,
                self._like_lengths,
                size=self._group_rows,
                seed=(self._seed, self._number),
            )
        return self._to_rows(block, self._lengths)

    def _end_of_pass(self) -> int | None:
        """Returns the raw examples read by the end of the last one's pass, if a block ends there.

        Rows that are ordered by length stay in their pass, so that each is seen once in it.
        """
        size = self._examples.pass_size
        if not self._like_lengths or not size:
            return None
        passes = int(self._examples.read / size)
        while round(passes * size) < self._examples.read:
            passes += 1
        return round(passes * size)

    def _note_epoch(self) -> None:
        """Finds out to which example the rows given out of the block go: about, if packed."""
        assert self._block is not None
        given = self._taken * len(self._reads) // len(next(iter(self._block.values())))
        # Completed passes are known only where the stream itself is.
        if self._examples.pass_size is not None or given == len(self._reads):
            self.epoch = self._epoch_at(self._reads[max(given, 1) - 1])

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


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins rows of the same names, `[n, ...]` each, along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
