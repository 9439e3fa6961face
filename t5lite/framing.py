"""The special tokens around a text: one rule for training, scoring, embedding and generation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import overload

import numpy as np

from t5lite.errors import InputError, option


@dataclasses.dataclass(frozen=True)
class Frame:
    """Adds special tokens to the ids of a text."""

    before: tuple[int, ...] = ()  # BERT's `[CLS]`, LLaMA's `<s>`
    after: tuple[int, ...] = ()  # EOS, BERT's `[SEP]`, mBART's `</s> en_XX`

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
        """Returns the ids `[n]` with the special tokens around them, arrays as int32.

        A text that exceeds `room` ids, special tokens included, loses its end.
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
        """Returns the ids of a text, truncated so that the special tokens fit too.

        Args:
          ids: `[n]`, without special tokens.
          most: positions of the model; None for any number.
          beside: further tokens that need positions.
          end: whether to truncate the end, rather than the beginning.
          truncate: whether to truncate longer texts, rather than to refuse them.
          note: description of the tokens beside, for the error; "" counts them as the text's.
          fix: the field to shorten, for the error.
        Raises: InputError if a longer text is not truncated, or nothing would be left of it.
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
        """Returns a frame with `value` for every special token, for arrays aligned with ids."""
        return Frame((value,) * len(self.before), (value,) * len(self.after))

    @overload
    def without(self, ids: np.ndarray) -> np.ndarray: ...
    @overload
    def without(self, ids: list[int]) -> list[int]: ...

    def without(self, ids: list[int] | np.ndarray) -> list[int] | np.ndarray:
        """Returns the ids of a text without the tokens of `before`, which are added anyway."""
        size = len(self.before)
        return ids[size:] if size and tuple(ids[:size]) == self.before else ids

    def read_after(self, token: int | None) -> "Frame":
        """Returns the frame without a first `token`, which a decoder reads as its start token."""
        return Frame(self.before[1:], self.after) if self.before[:1] == (token,) else self
