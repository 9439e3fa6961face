"""The special tokens around a text: one rule for training, scoring, embedding and generation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import overload

import numpy as np

from t5lite.errors import InputError, option


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

    def fit(
        self,
        ids: list[int],
        most: int | None,
        *,
        beside: int = 0,
        end: bool = True,
        truncate: bool = False,
        note: str = "",
        fix: str = "it",
    ) -> list[int]:
        """Returns the ids of a text, without special tokens, that leave room for them.

        Args:
          ids: `[n]`, of a text.
          most: positions of the model; None for any number.
          beside: further tokens that need positions.
          end: whether a longer text loses its end, rather than its beginning.
          truncate: whether a longer text is truncated; otherwise it is refused.
          note: what the tokens beside it are, for the error; "" counts them as the text's.
          fix: what to shorten, for the error.

        Raises:
          InputError: a longer text that is not truncated, or of which nothing would be left.
        """
        size = len(ids) + self.size
        if most is None or size + beside <= most:
            return ids
        left = most - self.size - beside
        if not truncate or left < 1:
            advice = "" if truncate or left < 1 else f", or set {option('truncate', True)}"
            raise InputError(
                f"a text of {size if note else size + beside} tokens{note}: the model takes "
                f"{most}; shorten {fix}{advice}"
            )
        return ids[:left] if end else ids[-left:]

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
