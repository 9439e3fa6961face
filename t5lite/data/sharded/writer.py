"""Writers of sharded corpora: of one shard, and of a whole corpus."""

import functools
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.paths import as_path, check_folder
from t5lite.data.sharded.manifest import TEXT, Manifest, Shard, corpus_path, encoded
from t5lite.data.sharded.records import import_array_record
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.errors import InputError


class ShardWriter:
    """Writes one shard.

    Args:
      folder: of the corpus, local or remote (a remote shard is copied there by `close`).
      file: name of the shard.
      features, group: as in `Manifest`.
    """

    def __init__(
        self, folder: str | os.PathLike, file: str, *, features: Mapping[str, str], group: int
    ):
        self._target, self._features = as_path(folder) / file, features
        self._target.parent.mkdir(parents=True, exist_ok=True)
        local = self._target.parent if isinstance(self._target, Path) else None
        handle, self._path = tempfile.mkstemp(dir=local, prefix=f".{file}.")
        os.close(handle)
        module = import_array_record()
        self._writer = module.ArrayRecordWriter(self._path, f"group_size:{group}")
        self._records = self._tokens = 0
        self._digest = hashlib.sha256()

    def write(self, example: Mapping[str, Any]) -> None:
        """Appends a record: a text or token ids for each feature."""
        record = encoded(example, self._features)
        self._writer.write(record)
        self._digest.update(len(record).to_bytes(4, "little") + record)
        self._records += 1
        self._tokens += sum(
            len(example[name]) for name, kind in self._features.items() if kind != TEXT
        )

    def close(self) -> Shard:
        """Ends the shard, moves it to its folder and returns its entry in the manifest."""
        self._writer.close()
        size = os.path.getsize(self._path)
        os.chmod(self._path, 0o644)  # mkstemp's 0600 would lock out others who share the folder
        if isinstance(self._target, Path):
            os.replace(self._path, self._target)
        else:
            self._target.write_bytes(Path(self._path).read_bytes())
            os.unlink(self._path)
        has_ids = any(kind != TEXT for kind in self._features.values())
        tokens = self._tokens if has_ids else None
        return Shard(self._target.name, self._records, tokens, size, self._digest.hexdigest())

    def discard(self) -> None:
        self._writer.close()
        if os.path.exists(self._path):
            os.unlink(self._path)


def write_shards(
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    folder: str | os.PathLike,
    *,
    vocabulary: Vocabulary | None = None,
    num_shards: int = 16,
    group: int = 16,
    recipe: Any = None,
    progress: Callable[[str, int], None] = lambda split, records: None,
) -> Manifest:
    """Writes a corpus of texts or token ids that `ShardedData` reads.

    Args:
      splits: examples of each split, `"train"` and maybe `"validation"`: a text, or token ids, for
        each feature. Every example has the features of the first, of the same kinds.
      folder: new or empty, local or remote; the corpus appears when all of it is written.
      vocabulary: of the token ids; is saved beside them. Texts need none.
      num_shards: files of a split, to which examples are dealt in turn; on an object store at
        least as many as processes will read.
      group: neighbouring records that are compressed, and in large corpora drawn in training,
        together: 1 for a shuffle of single records, more for fewer and larger reads.
      recipe: JSON that describes how the corpus is made; its hash is kept.
      progress: called with a split, and how many more records of it are written.
    Raises: InputError if the folder is not empty, or an example differs in kind from the first.
    """
    root = corpus_path(folder)
    check_folder(folder, field="folder")
    for name, value in (("num_shards", num_shards), ("group", group)):
        if value < 1:
            raise InputError(f"{name} = {value}: must be at least 1", field=name)
    if root.exists() and any(root.iterdir()):
        raise InputError(
            f"folder = {str(folder)!r}: holds files; choose another, or delete it", field="folder"
        )
    if not isinstance(splits, Mapping):
        raise InputError(
            f"splits is {type(splits).__name__}: must be a mapping from split to examples, such as "
            '{"train": examples}',
            field="splits",
        )
    shards: dict[str, tuple[Shard, ...]] = {}
    try:
        features = _write_splits(
            splits,
            root,
            shards,
            vocabulary=vocabulary,
            num_shards=num_shards,
            group=group,
            progress=progress,
        )
    except BaseException:  # so that the folder can be written again
        for shard in itertools.chain.from_iterable(shards.values()):
            (root / shard.file).unlink()
        raise
    fingerprint = None
    if vocabulary is not None and set(features.values()) != {TEXT}:
        vocabulary.save(root / "vocabulary")
        fingerprint = vocabulary.fingerprint
    if recipe is not None:
        recipe = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    manifest = Manifest(shards, features, group, vocabulary=fingerprint, recipe=recipe)
    manifest.save(root)
    return manifest


def _write_splits(
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    root: Any,
    shards: dict[str, tuple[Shard, ...]],
    *,
    vocabulary: Vocabulary | None,
    num_shards: int,
    group: int,
    progress: Callable[[str, int], None],
) -> dict[str, str]:
    """Writes one split after the other, adds them to `shards`, and returns the features' kinds."""
    features: dict[str, str] = {}
    for split, examples in splits.items():
        rest = iter(examples)
        first = next(rest, None)
        if first is None:
            raise InputError(f"split {split!r} has no examples; leave it out")
        features = features or _features_of(first, vocabulary)
        check = _Checked(features, split, vocabulary)
        shards[split] = _write_split(
            map(check, itertools.chain([first], rest)),
            root,
            [f"{split}-{n:05d}-of-{num_shards:05d}.array_record" for n in range(num_shards)],
            features=features,
            group=group,
            progress=functools.partial(progress, split),
        )
    return features


def _write_split(
    examples: Iterable[Mapping[str, Any]],
    root: Any,
    files: Sequence[str],
    *,
    features: Mapping[str, str],
    group: int,
    progress: Callable[[int], None],
) -> tuple[Shard, ...]:
    writers = [ShardWriter(root, file, features=features, group=group) for file in files]
    try:
        for example, writer in zip(examples, itertools.cycle(writers), strict=False):
            writer.write(example)
            progress(1)
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    return tuple(writer.close() for writer in writers)


def _features_of(example: Mapping[str, Any], vocabulary: Vocabulary | None) -> dict[str, str]:
    """Returns the kind of each feature: text, or the smallest type that holds all ids."""
    if not isinstance(example, Mapping):
        raise InputError(
            f"an example is {type(example).__name__}: must be a mapping from feature to a text or "
            'token ids, such as {"text": "…"}'
        )
    ids = "uint32" if vocabulary is None else np.min_scalar_type(vocabulary.size - 1).name
    return {name: TEXT if isinstance(value, str) else ids for name, value in example.items()}


class _Checked:
    """Passes on examples of the same features and kinds as the first."""

    def __init__(self, features: Mapping[str, str], split: str, vocabulary: Vocabulary | None):
        self._features, self._split, self._number = features, split, 0
        self._num_ids = 2**31 if vocabulary is None else vocabulary.size

    def __call__(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        label = f"example {self._number:,} of {self._split!r}"
        self._number += 1
        if not isinstance(example, Mapping):
            raise InputError(f"{label} is {type(example).__name__}, and the first one a mapping")
        if example.keys() != self._features.keys():
            raise InputError(
                f"{label} has the features {sorted(example)}, and the first one "
                f"{sorted(self._features)}"
            )
        for name, kind in self._features.items():
            value = example[name]
            if isinstance(value, str) != (kind == TEXT):
                raise InputError(f"{label}: {name!r} is {type(value).__name__}, and not as before")
            if kind == TEXT:
                continue
            ids = np.asarray(value)
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise InputError(f"{label}: {name!r} must be token ids in one dimension")
            if ids.size and not 0 <= ids.min() <= ids.max() < self._num_ids:
                raise InputError(
                    f"{label}: {name!r} has ids from {ids.min()} to {ids.max()}, beyond the "
                    f"vocabulary's {self._num_ids:,}"
                )
        return example
