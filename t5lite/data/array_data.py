"""Datasets of arrays in memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from t5lite.data.dataset import Dataset
from t5lite.data.sources import Component, Example, NoSplit, NumberedSource
from t5lite.rows import HostHalf

if TYPE_CHECKING:
    from t5lite.data.vocabularies.base import Vocabulary


class ArraySource(NumberedSource):
    def __init__(self, name: str, arrays: Sequence[Mapping[str, np.ndarray]]):
        self.name, self.num_examples = name, len(arrays)
        self._arrays = [
            {key: np.asarray(value) for key, value in example.items()} for example in arrays
        ]

    @functools.cached_property
    def content(self) -> str:
        """Hex digest of all arrays."""
        digest = hashlib.sha256()
        for example in self._arrays:
            for name, values in example.items():
                digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
                digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        del seed
        return (self._arrays[number] for number in window.tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData(Dataset):
    """Examples that are token ids in memory. Needs no TensorFlow.

    Attributes:
      train: examples: 1-D integer arrays by feature.
      validation: examples; may be empty.
      vocab: of the ids, if the objective or a sampler needs it.
    """

    train: Sequence[Mapping[str, np.ndarray]]
    validation: Sequence[Mapping[str, np.ndarray]] = ()
    _: dataclasses.KW_ONLY
    vocab: "Vocabulary | None" = None

    def vocabulary(self) -> "Vocabulary | None":
        return self.vocab

    def describe(self) -> str:
        return f"arrays: {len(self.train):,} examples to train on, {len(self.validation):,} to test"

    def num_examples(self, split: str) -> int | None:
        return len({"train": self.train, "validation": self.validation}.get(split, ()))

    @functools.cached_property
    def _opened(self) -> dict[str, ArraySource]:
        return {}

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        splits = {"train": self.train, "validation": self.validation}
        if not len(splits.get(split, ())):
            full = [name for name, arrays in splits.items() if len(arrays)]
            raise NoSplit(
                f"ArrayData has no examples in split {split!r}; it has {', '.join(full) or 'none'}"
            )
        if split not in self._opened:  # cached for its digest
            self._opened[split] = ArraySource(f"arrays:{split}", splits[split])
        return [Component(self._opened[split], 1.0, objective)]
