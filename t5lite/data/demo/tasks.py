"""The embedded corpus as tasks, with the attributes of a `seqio.Task` and without TensorFlow.

| task | features | vocabulary |
|---|---|---|
| `python_docs` | targets | unigram of 4,096, trained on its own train split |
| `docstring_summary` | inputs, targets | the same, so that a model of `python_docs` can go on |
| `python_docs_bytes`, `docstring_summary_bytes` | as above | ByT5's bytes |
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from t5lite.data.demo import python_docs
from t5lite.data.demo.vocabulary import python_docs_vocabulary
from t5lite.data.sources import Example, NumberedSource
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes

NAMES = ("python_docs", "python_docs_bytes", "docstring_summary", "docstring_summary_bytes")
_CHUNK = 64  # texts that are encoded at a time


class Feature(NamedTuple):
    """One feature, as `seqio.Feature` describes it."""

    vocabulary: Vocabulary
    add_eos: bool


@dataclasses.dataclass(frozen=True)
class DemoTask:
    """One of `NAMES`.

    Attributes:
      name: of the task.
      splits: of the corpus.
      metric_objs: none.
    """

    name: str
    splits: ClassVar[tuple[str, ...]] = python_docs.SPLITS
    metric_objs: ClassVar[tuple[()]] = ()

    @functools.cached_property
    def output_features(self) -> dict[str, Feature]:
        """The features; of a pair both end with EOS, how a text alone ends the objective says."""
        vocabulary = Bytes() if self.name.endswith("_bytes") else python_docs_vocabulary()
        columns = self.columns(self.splits[0])
        return dict.fromkeys(columns, Feature(vocabulary, add_eos="inputs" in columns))

    def columns(self, split: str) -> dict[str, list[str]]:
        """Returns the texts of each feature."""
        if self.name.startswith("python_docs"):
            return {"targets": python_docs.documents(split)}
        inputs, targets = zip(*python_docs.pairs(split), strict=True)
        return {"inputs": list(inputs), "targets": list(targets)}


class TextSource(NumberedSource):
    """Texts in memory, in the order that `SeqioSource` reads a task of them in.

    Args:
      name: says what is read; part of every random key.
      columns: texts by feature.
      features: what encodes each.
    """

    def __init__(
        self, name: str, columns: Mapping[str, Sequence[str]], features: Mapping[str, Feature]
    ):
        self.name, self._columns, self._features = name, columns, features
        self.num_examples = len(next(iter(columns.values())))
        self.add_eos = {feature: each.add_eos for feature, each in features.items()}

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        """Yields the token ids of texts."""
        del seed
        for start in range(0, len(window), _CHUNK):
            numbers = window[start : start + _CHUNK].tolist()
            columns = {
                name: self._features[name].vocabulary.encode_all([texts[i] for i in numbers])
                for name, texts in self._columns.items()
            }
            for row in zip(*columns.values(), strict=True):
                ids = (np.array(each, np.int32) for each in row)
                yield dict(zip(columns, ids, strict=True))
