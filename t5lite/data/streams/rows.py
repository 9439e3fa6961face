"""Rows of a stream's examples, packed or padded."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.data.like_lengths import order_by_length
from t5lite.data.packing import empty_rows, pack, pad
from t5lite.data.streams.examples import Stream
from t5lite.rows import Example, Rows, RowSpec


class RowStream:
    """Rows of a stream's examples, packed or one example to a row.

    Examples are packed in independent blocks of about `block_rows` rows; the state is the stream's
    at the start of the block, and the rows delivered from it.

    Args:
      examples: the stream.
      specs: of the rows.
      packed: whether a row may hold several examples.
      block_rows: a larger block packs tighter and starts later.
      like_lengths: whether rows that are not packed are ordered by length in a block, see
        `like_lengths`.
      group_rows: neighbours in that order that stay together: the rows of one batch.
      seed: of the order of the groups.

    Attributes:
      epoch: passes over the data of the rows delivered; an integer, of completed ones, where the
        examples are not counted.
    """

    epoch: float

    def __init__(
        self,
        examples: Stream,
        specs: Mapping[str, RowSpec],
        *,
        packed: bool,
        block_rows: int = 64,
        like_lengths: bool = False,
        group_rows: int = 1,
        seed: int = 0,
    ):
        self._examples, self._specs = examples, dict(specs)
        self._like_lengths, self._group_rows, self._seed = like_lengths, group_rows, seed
        self._packed, self._block_rows = packed, block_rows
        self.load({"block": examples.state(), "rows": 0})

    @property
    def vanished(self) -> int:
        """Raw examples that were dropped, since the start or the last load."""
        return self._examples.vanished

    def state(self) -> dict[str, Any]:
        """Returns the position after the last row, as JSON."""
        position = {"block": self._block_start, "rows": self._taken, "epoch": self.epoch}
        position |= {"number": self._number} if self._like_lengths else {}
        return position | ({"first_fit": self._first_fit} if self._first_fit else {})

    def load(self, state: dict[str, Any]) -> None:
        """Moves to the position of a `state`; work is done when a row is needed.

        A state with `first_fit`, its `block_rows`, is of a version before first-fit decreasing: its
        block ends as that version packed it, so that no row is lost.
        """
        self._examples.load(state["block"])
        self._number = state.get("number", 0)
        self._start_block(taken=state["rows"])
        self._first_fit = state.get("first_fit", 0)
        self.epoch = state.get("epoch", self.epoch)  # unknown to the stream before it reads

    def _start_block(self, *, taken: int) -> None:
        self._block: Rows | None = None
        self._reads: list[int] = []  # raw examples, by each example of the block
        self._first_fit = 0
        self._block_start, self._taken = self._examples.state(), taken
        self.epoch = self._epoch_at(self._examples.read)

    def _epoch_at(self, read: int) -> float:
        size = self._examples.pass_size
        return self._examples.passes if size is None else read / size

    def take(self, count: int) -> Rows:
        """Returns the next `[count, ...]` rows by name; fewer if the stream has ended."""
        parts, missing = [], count
        while missing:
            if self._block is None:
                self._block = self._next_block()
            rows = {
                name: value[self._taken : self._taken + missing]
                for name, value in self._block.items()
            }
            if size := len(next(iter(rows.values()))):
                parts.append(rows)
                self._taken += size
                missing -= size
                self._note_epoch()
            elif not self._taken:
                break  # an empty block: the end
            else:
                self._number += 1
                self._start_block(taken=0)
        return concatenate(parts) if parts else empty_rows(self._specs, 0, packed=self._packed)

    def _next_block(self) -> Rows:
        block: list[Example] = []
        filled, end, size = 0.0, None, self._first_fit or self._block_rows
        # The second bound is for examples of next to nothing.
        while filled < size and len(block) < 64 * size:
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
            seed = self._seed, self._number
            block = order_by_length(block, self._specs, size=self._group_rows, seed=seed)
        if self._packed:
            return pack(block, self._specs, decreasing=not self._first_fit)
        return pad(block, self._specs)

    def _end_of_pass(self) -> int | None:
        """Returns the raw examples by the end of the present pass, if a block ends with it.

        Rows that are ordered by length stay in their pass, so that each is seen once in it.
        """
        size = self._examples.pass_size
        if not self._like_lengths or not size:
            return None
        passes = itertools.count(int(self._examples.read / size))
        return next(end for n in passes if (end := round(n * size)) >= self._examples.read)

    def _note_epoch(self) -> None:
        """Sets the epoch of the last example in the rows delivered; about, if packed."""
        assert self._block is not None
        delivered = self._taken * len(self._reads) // len(next(iter(self._block.values())))
        # Completed passes are known only at the stream's own position.
        if self._examples.pass_size is not None or delivered == len(self._reads):
            self.epoch = self._epoch_at(self._reads[max(delivered, 1) - 1])

    def _share(self, example: Example) -> float:
        """Returns the fraction of a row that an example takes, in its tightest feature."""
        if not self._packed:
            return 1.0
        shares = (
            (1 if spec.kind == "per_example" else len(example[name])) / spec.length
            for name, spec in self._specs.items()
            if name in example  # packing reports missing ones
        )
        return max(shares, default=1.0)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Joins rows of the same names, `[n, ...]` each, along the first axis."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
