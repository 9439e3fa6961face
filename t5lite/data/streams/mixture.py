"""Examples of several streams, drawn at rates."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5lite.data.order import generator
from t5lite.data.sources import Example
from t5lite.data.streams.examples import MIX, Stream

_CHOICES = 1024
_DRAWS = 2**40  # more than in a pass


class MixtureStream:
    """Examples of several streams, drawn at rates, or once each; see `Stream`.

    An epoch has as many raw examples as all streams together.

    Args:
      rates: relative, > 0; None: in proportion to the streams' sizes, or in turns if one is
        unknown, until all have ended.
      shard: decides the draws with the seed.
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
        """Passes that every stream has completed."""
        return min(stream.passes for stream in self._streams)

    @property
    def vanished(self) -> int:
        return sum(stream.vanished for stream in self._streams)

    def state(self) -> dict[str, Any]:
        """Returns the number of draws and the streams' states."""
        return {"count": self._count, "streams": [stream.state() for stream in self._streams]}

    def load(self, state: dict[str, Any]) -> None:
        self._count, self._choices = state["count"], np.empty(0, np.int64)
        for stream, position in zip(self._streams, state["streams"], strict=True):
            stream.load(position)
        self._begin_turns()

    def begin(self, passes: int) -> None:
        """Moves all streams to the start of a pass, with other draws than earlier passes."""
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
        """Returns draw number `count`, a function of the key and the number."""
        assert self._bounds is not None
        block, at = divmod(self._count, _CHOICES)
        if at == 0 or not self._choices.size:
            uniform = generator(MIX, *self._key, block).random(_CHOICES)
            # min: the last bound may fall short of 1 by rounding.
            choices = np.searchsorted(self._bounds, uniform, side="right")
            self._choices = np.minimum(choices, len(self._streams) - 1)
        return int(self._choices[at])

    def _begin_turns(self) -> None:
        self.read = sum(stream.read for stream in self._streams)
        self._turns = [(self._share_read(number), number) for number in range(len(self._streams))]
        heapq.heapify(self._turns)

    def _share_read(self, number: int) -> float:
        """Returns the fraction of a stream read with the next example; or examples read."""
        read = self._streams[number].read
        return read if self.pass_size is None else (read + 0.5) / self._sizes[number]
