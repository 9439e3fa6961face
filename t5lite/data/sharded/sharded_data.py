"""Training on a corpus of ArrayRecord shards, of any size and from any number of hosts."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5lite.data.dataset import Dataset
from t5lite.data.paths import as_path
from t5lite.data.sharded.manifest import TEXT, Manifest, decoded
from t5lite.data.sharded.records import Records
from t5lite.data.sources import Component, Example, NoSplit, NumberedSource, dealt, next_epoch
from t5lite.data.vocabularies.opening import load_vocabulary, open_vocabulary
from t5lite.errors import InputError, unknown
from t5lite.rows import HostHalf

if TYPE_CHECKING:
    from t5lite.data.vocabularies.base import Vocabulary

_CHUNK = 64  # texts that are encoded at a time
_GROUPS = 16  # of a virtual shard, on average, from which on groups are dealt whole


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedData(Dataset):
    """Corpus of `write_shards`, on a local disk or `gs://`. Needs no TensorFlow.

    A start reads `manifest.json` alone, whatever the size of the corpus; records are read by
    random access, without unpacking. Every epoch has all records in another random order, in
    memory that does not grow with the corpus: groups of neighbours (`write_shards(group=…)`) in
    random order, shuffled among the groups of a window; single records if the virtual shards would
    have less than 16 groups each.

    Attributes:
      folder: of the corpus.
      vocab: a vocabulary, or the path of one; None: that of the token ids, from which it may not
        differ.
      features: the corpus' name of each feature, such as `{"targets": "text"}`; None: the same.
    """

    folder: str
    _: dataclasses.KW_ONLY
    vocab: Any = None
    features: Mapping[str, str] | None = None

    def vocabulary(self) -> "Vocabulary | None":
        return self._vocabulary

    def describe(self) -> str:
        lines = []
        for split, shards in self._manifest.splits.items():
            tokens = [shard.tokens for shard in shards if shard.tokens is not None]
            counted = f"{sum(tokens):,} tokens, " if tokens else ""
            lines.append(
                f"{split} of {self.folder}: {self.num_examples(split):,} records, {counted}"
                f"{sum(shard.bytes for shard in shards):,} bytes in {len(shards):,} shards"
            )
        return "\n".join(lines)

    def num_examples(self, split: str) -> int | None:
        return sum(shard.records for shard in self._manifest.splits.get(split, ()))

    @functools.cached_property
    def _manifest(self) -> Manifest:
        return Manifest.load(self.folder)

    @functools.cached_property
    def _vocabulary(self) -> "Vocabulary | None":
        vocabulary, fingerprint = self.vocab, self._manifest.vocabulary
        if isinstance(vocabulary, str):
            vocabulary = open_vocabulary(vocabulary)
        if fingerprint is not None:
            if vocabulary is not None and vocabulary.fingerprint != fingerprint:
                raise InputError(
                    f"vocab = {vocabulary!r}: the ids in {self.folder} are of another vocabulary "
                    f"(sha256 {fingerprint[:12]}, not {vocabulary.fingerprint[:12]}): leave it out "
                    "or write the corpus with this one",
                    field="ShardedData.vocab",
                )
            vocabulary = load_vocabulary(as_path(self.folder) / "vocabulary")
            if vocabulary.fingerprint != fingerprint:
                raise InputError(
                    f"{as_path(self.folder) / 'vocabulary'} is damaged: it is not the vocabulary "
                    "of manifest.json; restore it"
                )
        if vocabulary is None and TEXT in self._manifest.features.values():
            raise InputError(
                f"vocab = None: {self.folder} holds texts, which need a vocabulary",
                field="ShardedData.vocab",
            )
        return vocabulary

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        names = {name: name for name in self._manifest.features}
        if self.features is None:
            return names
        for name in self.features.values():
            if name not in names:
                raise self._unknown(name, names)
        return dict(self.features)

    def _unknown(self, name: str, names: Mapping[str, str]) -> InputError:
        return unknown(f"feature of {self.folder}", name, names, field="ShardedData.features")

    @functools.cached_property
    def _opened(self) -> "dict[str, ShardedSource]":
        return {}

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        if not self._manifest.splits.get(split):
            raise NoSplit(
                f"{self.folder} has no split {split!r}; it has {', '.join(self._manifest.splits)}"
            )
        if split not in self._opened:
            self._opened[split] = ShardedSource(
                self.folder, self._manifest, split, names=self._names, vocabulary=self.vocabulary()
            )
        missing = [name for name in objective.features if name not in self._names]
        if missing and not self.can_prepare(self._opened[split], objective):
            raise self._unknown(missing[0], self._names)
        return [Component(self._opened[split], 1.0, objective)]


class ShardedSource(NumberedSource):
    """One split of a sharded corpus; a raw example is a record's number.

    `names` are the corpus' of each feature; `vocabulary` encodes texts.

    Raises: InputError if a shard is missing or has changed.
    """

    def __init__(
        self,
        folder: str,
        manifest: Manifest,
        split: str,
        *,
        names: Mapping[str, str],
        vocabulary: "Vocabulary | None",
    ):
        shards: Sequence[Any] = manifest.splits[split]
        self.name, self.content = f"{as_path(folder).name}:{split}", manifest.digest(split)
        self.waits = not isinstance(as_path(folder), Path)  # for an object store
        self._records, self._features = Records(folder, shards), manifest.features
        self._names, self._vocabulary, self._group = dict(names), vocabulary, manifest.group
        self.num_examples = len(self._records)
        records = np.array([shard.records for shard in shards])
        # Groups do not cross files: by shard, the records and the groups before it.
        self._end_record = np.cumsum(records)
        self._first_record = self._end_record - records
        groups = -(-records // self._group)
        self._first_group = np.cumsum(groups) - groups
        self._num_groups = int(groups.sum())

    def windows(self, **key: int) -> Iterator[np.ndarray]:
        """Yields a shard's windows, of whole groups if it has many; see `Source.windows`."""
        if not self._deals_groups(key["num_shards"]):
            return super().windows(**key)
        key["size"] = max(key["size"] // self._group, 1)
        return map(self._members, dealt(self._num_groups, self.name, **key))

    def next_epoch(self, **key: int) -> int:
        if not self._deals_groups(key["num_shards"]):
            return super().next_epoch(**key)
        return next_epoch(self._num_groups, self.name, **key)

    def _deals_groups(self, num_shards: int) -> bool:
        """Whether the shards have enough groups each to be about as large as one another."""
        return self._num_groups >= _GROUPS * num_shards

    def examples(self, window: np.ndarray, *, seed: int) -> Iterator[Example]:
        del seed
        for start in range(0, len(window), _CHUNK):
            records = self._records.read(window[start : start + _CHUNK])
            values = [decoded(record, self._features) for record in records]
            columns = {name: self._ids(name, values) for name in self._names}
            for row in zip(*columns.values(), strict=True):
                yield dict(zip(columns, row, strict=True))

    def _members(self, groups: np.ndarray) -> np.ndarray:
        shard = np.searchsorted(self._first_group, groups, side="right") - 1
        start = self._first_record[shard] + (groups - self._first_group[shard]) * self._group
        records = start[:, np.newaxis] + np.arange(self._group)
        return records[records < self._end_record[shard][:, np.newaxis]]

    def _ids(self, name: str, values: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        column = [value[self._names[name]] for value in values]
        if self._features[self._names[name]] != TEXT or self._vocabulary is None:
            return column
        vocabulary = self._vocabulary.targets if name == "targets" else self._vocabulary
        return [np.array(ids, np.int32) for ids in vocabulary.encode_all(column)]
