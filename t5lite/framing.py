"""The special tokens around a text: one rule for training, scoring, embedding and generation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import overload

import numpy as np


@dataclasses.dataclass(frozen=True)
class Frame:
    """Adds special tokens to the ids of a text.

    Attributes:
      before: ids in front of the text: BERT's `[CLS]`, LLaMA's `<s>`.
      after: ids after it: EOS, BERT's `[SEP]`, mBART's `</s> en_XX`.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of special tokens."""
        return len(self.before) + len(self.after)

    @overload
    def __call__(self, ids: np.ndarray, room: int | None = None) -> np.ndarray: ...
    @overload
    def __call__(self, ids: Sequence[int], room: int | None = None) -> list[int]: ...

    def __call__(
        self, ids: Sequence[int] | np.ndarray, room: int | None = None
    ) -> list[int] | np.ndarray:
        """Returns the ids with the special tokens around them.

        Args:
          ids: `[n]`, of a text.
          room: the most ids to return, >= `size`: a longer text loses its end. None: any number.

        Returns:
          `[n + size]`, of the type of `ids`; arrays are int32.
        """
        if room is not None:
            ids = ids[: max(room - self.size, 0)]
        if isinstance(ids, np.ndarray):
            before, after = self._arrays
            return np.concatenate([before, np.asarray(ids, np.int32), after])
        return [*self.before, *ids, *self.after]

    @functools.cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.before, np.int32), np.array(self.after, np.int32)

    def filled(self, value: int) -> "Frame":
        """Returns a frame with `value` for every special token: for what is aligned with ids."""
        return Frame((value,) * len(self.before), (value,) * len(self.after))

    @overload
    def without(self, ids: np.ndarray) -> np.ndarray: ...
    @overload
    def without(self, ids: list[int]) -> list[int]: ...

    def without(self, ids: list[int] | np.ndarray) -> list[int] | np.ndarray:
        """Returns the ids of a text without the tokens in front that it spells itself.

        They are added anyway, and are never read twice.
        """
        size = len(self.before)
        return ids[size:] if size and tuple(ids[:size]) == self.before else ids

    def read_after(self, token: int | None) -> "Frame":
        """Returns the frame of a text in front of which a model reads `token` anyway.

        A decoder reads its start token first, which the frame then does not repeat.
        """
        return Frame(self.before[1:], self.after) if self.before[:1] == (token,) else self
