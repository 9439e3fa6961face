"""The embedded corpus as tasks with the attributes of a `seqio.Task`, free of TensorFlow.

| task | features | vocabulary |
|---|---|---|
| `python_docs` | targets | unigram of 4,096, trained on its own train split |
| `docstring_summary` | inputs, targets | the same, to fine-tune a model of `python_docs` |
| `python_docs_bytes`, `docstring_summary_bytes` | as above | ByT5's bytes |
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from t5lite.data.demo import python_docs
from t5lite.data.sources import Example, NumberedSource
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.data.vocabularies.training import train_sentencepiece

NAMES = ("python_docs", "python_docs_bytes", "docstring_summary", "docstring_summary_bytes")
_CHUNK = 64  # texts that are encoded at a time


@functools.cache
def python_docs_vocabulary() -> SentencePiece:
    """Returns the 4,096-id vocabulary of `python_docs`, trained at first use (a few seconds)."""
    return train_sentencepiece(python_docs.documents("train"), 4096)


class Feature(NamedTuple):
    """One feature, as in `seqio.Feature`."""

    vocabulary: Vocabulary
    add_eos: bool


@dataclasses.dataclass(frozen=True)
class DemoTask:
    """One of the tasks in `NAMES`."""

    name: str
    splits: ClassVar[tuple[str, ...]] = python_docs.SPLITS
    metric_objs: ClassVar[tuple[()]] = ()

    @functools.cached_property
    def output_features(self) -> dict[str, Feature]:
        """The features: those of a pair end with EOS; the objective ends single texts."""
        vocabulary = Bytes() if self.name.endswith("_bytes") else python_docs_vocabulary()
        columns = self.columns(self.splits[0])
        return dict.fromkeys(columns, Feature(vocabulary, add_eos="inputs" in columns))

    def columns(self, split: str) -> dict[str, list[str]]:
        if self.name.startswith("python_docs"):
            return {"targets": python_docs.documents(split)}
        inputs, targets = zip(*python_docs.pairs(split), strict=True)
        return {"inputs": list(inputs), "targets": list(targets)}


class TextSource(NumberedSource):
    """Texts in memory, by feature, in the order of a `SeqioSource`."""

    def __init__(
        self, name: str, columns: Mapping[str, Sequence[str]], features: Mapping[str, Feature]
    ):
        self.name, self._columns, self._features = name, columns, features
        self.num_examples = len(next(iter(columns.values())))
        self.add_eos = {name: feature.add_eos for name, feature in features.items()}

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        del seed
        for start in range(0, len(window), _CHUNK):
            numbers = window[start : start + _CHUNK].tolist()
            columns = {
                name: self._features[name].vocabulary.encode_all([texts[i] for i in numbers])
                for name, texts in self._columns.items()
            }
            for row in zip(*columns.values(), strict=True):
                arrays = (np.array(ids, np.int32) for ids in row)
                yield dict(zip(columns, arrays, strict=True))
