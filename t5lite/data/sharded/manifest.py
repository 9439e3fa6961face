"""The manifest of a sharded corpus: the content of its shards, so that no start reads them.

FOLDER/manifest.json                        written last: marks the corpus complete
FOLDER/vocabulary/                          for `load_vocabulary`, where records hold ids
FOLDER/SPLIT-00000-of-00016.array_record    shards
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5lite.data.paths import as_path, read_json, write_whole
from t5lite.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
TEXT = "text"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file.

    Attributes:
      file: its name in the corpus folder.
      records: in it.
      tokens: in its records; None of text.
      bytes: of the file.
      sha256: hex digest of all records.
    """

    file: str
    records: int
    tokens: int | None
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
      splits: the shards of each split, in order.
      features: `"text"` (UTF-8), or NumPy's name of the integer type of token ids, by feature.
      group: neighbouring records that are compressed, and drawn, together.
      vocabulary: fingerprint of the vocabulary of the ids; None where all features are text.
      recipe: hash of the recipe that made the corpus, if one was given.
    """

    splits: Mapping[str, tuple[Shard, ...]]
    features: Mapping[str, str]
    group: int
    vocabulary: str | None = None
    recipe: str | None = None

    def digest(self, split: str) -> str:
        """Returns a hex digest of the records of a split."""
        content = [dict(self.features), self.group, *(shard.sha256 for shard in self.splits[split])]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def save(self, folder: str | os.PathLike) -> None:
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"
        write_whole(as_path(folder) / MANIFEST, text.encode())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Manifest":
        """Reads `manifest.json`; raises InputError if missing, damaged or of another format."""
        path = corpus_path(folder) / MANIFEST
        if not path.exists():
            raise InputError(
                f"folder = {str(folder)!r}: has no {MANIFEST}; write the corpus with "
                "t5lite.data.write_shards, which writes it last",
                field="ShardedData.folder",
            )
        return read_json(path, cls._parsed, version=FORMAT, key="format")

    @classmethod
    def _parsed(cls, content: dict[str, Any]) -> "Manifest":
        splits = content.pop("splits").items()
        shards = {split: tuple(Shard(**shard) for shard in entries) for split, entries in splits}
        return cls(splits=shards, **content)


def corpus_path(folder: str | os.PathLike) -> Any:
    """Returns the path of a corpus' folder; raises InputError unless it is local or `gs://`."""
    scheme, mark, _ = os.fspath(folder).partition("://")
    if mark and scheme != "gs":
        raise InputError(
            f"folder = {str(folder)!r}: shards lie on a local disk or gs://, not {scheme}://; copy "
            "the corpus to one of them",
            field="ShardedData.folder",
        )
    return as_path(folder)


def encoded(example: Mapping[str, Any], features: Mapping[str, str]) -> bytes:
    """Returns a record: the bytes of each feature's value in the order of `features`.

    All but the last are preceded by their number of bytes, a little-endian uint32.
    """
    parts = []
    for name, kind in features.items():
        value = example[name]
        parts.append(value.encode() if kind == TEXT else np.asarray(value, _little(kind)).tobytes())
    sizes = np.array([len(part) for part in parts[:-1]], "<u4")
    return sizes.tobytes() + b"".join(parts)


def decoded(record: bytes, features: Mapping[str, str]) -> dict[str, Any]:
    """Returns the example of an `encoded` record: texts, and `[length]` int32 token ids."""
    count = len(features) - 1
    ends = np.cumsum([4 * count, *np.frombuffer(record, "<u4", count)]).tolist()
    values: dict[str, Any] = {}
    bounds = itertools.pairwise([*ends, len(record)])
    for (name, kind), (start, end) in zip(features.items(), bounds, strict=True):
        part = record[start:end]
        if kind == TEXT:
            values[name] = part.decode()
        else:
            values[name] = np.frombuffer(part, _little(kind)).astype(np.int32)
    return values


def _little(kind: str) -> np.dtype:
    return np.dtype(kind).newbyteorder("<")
