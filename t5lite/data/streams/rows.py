"""Rows of a stream's examples, packed or padded."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.data.like_lengths import order_by_length
from t5lite.data.packing import empty_rows, pack, pad
from t5lite.data.streams.examples import Stream
from t5lite.rows import Example, Rows, RowSpec


@dataclasses.dataclass
class _Block:
    """Examples that are packed together.

    Attributes:
      start: the stream's state before the first one.
      epochs: of the stream, after each of the examples read so far.
      filled: rows that they would fill.
      end: raw examples read by the end of the pass, if the block ends there.
    """

    start: Any
    examples: list[Example] = dataclasses.field(default_factory=list)
    epochs: list[float] = dataclasses.field(default_factory=list)
    filled: float = 0.0
    end: int | None = None


class RowStream:
    """Rows of a stream's examples, packed or one example to a row.

    Examples are packed in independent blocks of about `block_rows` rows; the state is the stream's
    at the start of the block, and the rows delivered from it. All shards finish their blocks in
    the same batch: if each read its next one only then, that batch would stall the training step.
    So they read ahead, each in another batch, by `phase`.

    Args:
      packed: whether a row may hold several examples.
      block_rows: a larger block packs tighter and starts later.
      like_lengths: whether unpacked rows are ordered by length in a block, see `like_lengths`.
      group_rows: neighbours in that order that stay together: the rows of one batch.
      seed: of the order of the groups.
      phase: rows before the end of a block at which the next one is read.
    Attributes:
      epoch: passes over the data of the rows delivered; an integer, of completed ones, where the
        examples are not counted.
    """

    epoch: float
    _block: _Block
    _ahead: _Block | None  # the next block
    _rows: Rows | None  # of the block, when it is packed

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
        phase: int = 0,
    ):
        self._examples, self._specs = examples, dict(specs)
        self._phase = phase
        self._like_lengths, self._group_rows, self._seed = like_lengths, group_rows, seed
        self._packed, self._block_rows = packed, block_rows
        self.load({"block": examples.state(), "rows": 0})

    @property
    def vanished(self) -> int:
        return self._examples.vanished

    def state(self) -> dict[str, Any]:
        """Returns the position after the last row, as JSON."""
        position = {"block": self._block.start, "rows": self._taken, "epoch": self.epoch}
        position |= {"number": self._number} if self._like_lengths else {}
        return position | ({"first_fit": self._first_fit} if self._first_fit else {})

    def load(self, state: dict[str, Any]) -> None:
        """Moves to the position of a `state`; work is done when a row is needed.

        A state with `first_fit`, its `block_rows`, is of a version before first-fit decreasing: its
        block ends as that version packed it, so that no row is lost.
        """
        self._examples.load(state["block"])
        self._number = state.get("number", 0)
        self._first_fit = state.get("first_fit", 0)
        self._block, self._ahead = _Block(self._examples.state()), None
        self._rows, self._taken = None, state["rows"]
        self.epoch = state.get("epoch", self._epoch())  # unknown to the stream before it reads

    def _epoch(self) -> float:
        size = self._examples.pass_size
        return self._examples.passes if size is None else self._examples.read / size

    def take(self, count: int) -> Rows:
        """Returns the next `[count, ...]` rows by name; fewer if the stream has ended."""
        parts, missing = [], count
        while missing:
            if self._rows is None:
                if not self._block.examples:
                    self._read(self._block)
                self._rows = self._pack(self._block)
            rows = {
                name: value[self._taken : self._taken + missing]
                for name, value in self._rows.items()
            }
            if size := len(next(iter(rows.values()))):
                parts.append(rows)
                self._taken += size
                missing -= size
                self._advance()
            elif not self._taken:
                break  # an empty block: the end
            else:
                self._number += 1
                self._first_fit = 0
                self._block, self._ahead = self._ahead or _Block(self._examples.state()), None
                self._rows, self._taken = None, 0
        return concatenate(parts) if parts else empty_rows(self._specs, 0, packed=self._packed)

    def _advance(self) -> None:
        """Notes the epoch of the rows delivered; reads the next block if it is time."""
        assert self._rows is not None
        num_rows = len(next(iter(self._rows.values())))
        delivered = self._taken * len(self._block.examples) // num_rows
        self.epoch = self._block.epochs[max(delivered, 1) - 1]  # about, if packed
        if self._ahead is None and self._taken + self._phase >= num_rows:
            self._ahead = _Block(self._examples.state())
            self._read(self._ahead)

    def _read(self, block: _Block) -> None:
        """Reads the examples of a block."""
        size = self._first_fit if block is self._block and self._first_fit else self._block_rows
        # The second bound is for examples of next to nothing.
        while block.filled < size and len(block.examples) < 64 * size:
            example = next(self._examples, None)
            if example is None:
                return
            block.examples.append(example)
            block.epochs.append(self._epoch())
            block.filled += self._share(example)
            block.end = self._end_of_pass() if block.end is None else block.end
            if block.end is not None and self._examples.read >= block.end:
                return

    def _pack(self, block: _Block) -> Rows:
        examples = block.examples
        if self._like_lengths and examples:
            seed = self._seed, self._number
            examples = order_by_length(examples, self._specs, size=self._group_rows, seed=seed)
        if self._packed:
            return pack(examples, self._specs, decreasing=not self._first_fit)
        return pad(examples, self._specs)

    def _end_of_pass(self) -> int | None:
        """Returns the raw examples by the end of the present pass, if a block ends with it.

        Rows that are ordered by length stay in their pass, so that each is seen once in it.
        """
        size = self._examples.pass_size
        if not self._like_lengths or not size:
            return None
        passes = itertools.count(int(self._examples.read / size))
        return next(end for n in passes if (end := round(n * size)) >= self._examples.read)

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
