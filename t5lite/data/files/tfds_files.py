"""TensorFlow Datasets by name, as files: `tfds:glue/sst2#validation` is JSON lines in the cache."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.paths import cache_folder, whole_file
from t5lite.errors import InputError, unknown

PREFIX = "tfds:"
_NAME = re.compile(r"[\w./-]+(:[\d.*]+)?")


def tfds_file(name: str) -> str:
    """Returns a file with the examples of a dataset's split as JSON lines, written at first use.

    Names of classes stand for their numbers; texts are text; features within features have names
    with slashes, `answers/text`; images, sequences of sequences and other tensors are left out. For
    sets that fit on this disk twice: larger ones are for a SeqIO task with a
    `seqio.TfdsDataSource`.

    Args:
      name: `tfds:NAME`, with `/CONFIG`, `:VERSION` and `#SPLIT` where they are wanted; the split is
        `train` by default, and may be any that TFDS understands, such as `train[:10%]`. It must
        have been prepared (`tfds build NAME`); nothing is downloaded here.

    Raises:
      InputError: no such dataset or split, or it is not prepared.
    """
    builder, split = _builder(name)
    info = builder.info.splits[split]
    content = [str(builder.data_path), split, info.num_examples, _sizes(builder)]
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    stem = re.sub(r"\W+", "_", f"{builder.info.full_name}_{split}").strip("_")
    target = cache_folder() / "tfds" / f"{stem}-{digest}.jsonl"
    if not target.exists():
        _write(target, _rows(builder, split))
    return str(target)


def _builder(name: str) -> tuple[Any, str]:
    """Returns the prepared dataset that is named, and the split."""
    import_seqio()  # which brings TensorFlow Datasets, and keeps TensorFlow off the accelerators
    import tensorflow_datasets as tfds

    dataset, _, split = name.removeprefix(PREFIX).partition("#")
    split = split or "train"
    if not _NAME.fullmatch(dataset):  # TFDS would ask the network for those of a namespace
        raise InputError(
            f"{name!r}: must be tfds:NAME, with /CONFIG, :VERSION and #SPLIT where they are "
            "wanted; copy community datasets, NAMESPACE:NAME, to a file"
        )
    try:
        builder = tfds.builder(dataset)
    except Exception as error:  # of many kinds, with many lines
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name!r}: TensorFlow Datasets has no {dataset!r}: {said[0]}") from error
    if not builder.is_prepared():
        raise InputError(
            f"{name!r} is not prepared in {builder.data_path}: run `tfds build {dataset}` where "
            "there is a network, or set TFDS_DATA_DIR to where it is"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise InputError(f"{name!r}: {unknown('split', split, builder.info.splits)}") from error
    return builder, split


def _sizes(builder: Any) -> list[tuple[str, list[int]]]:
    """Returns what changes when a dataset is prepared anew from other data."""
    return [(name, list(split.shard_lengths)) for name, split in builder.info.splits.items()]


def _rows(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    read_config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=read_config)
    for example in tfds.as_numpy(dataset):
        yield dict(_columns(example, features))


def _columns(example: Mapping[str, Any], features: Any, path: str = "") -> Iterator:
    """Yields name and value of each column that JSON can hold."""
    for name, value in example.items():
        feature = features[name]
        inside = getattr(feature, "feature", feature)  # of a sequence
        if isinstance(value, Mapping):
            yield from _columns(value, inside, f"{path}{name}/")
            continue
        if not isinstance(value, np.ndarray | np.generic | bytes | str | bool | int | float):
            continue  # a ragged tensor, of sequences within sequences, say
        if isinstance(value, np.ndarray) and (value.ndim > 1 or value.size > 10_000):
            continue
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        names = getattr(inside, "int2str", None)
        yield f"{path}{name}", _plain(plain, names)


def _plain(value: Any, names: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item, names) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    # Those without a label have -1.
    return names(value) if names is not None and isinstance(value, int) and value >= 0 else value


def _write(target: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes rows as JSON lines, whole or not at all."""
    try:
        with whole_file(target) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; set T5LITE_CACHE") from error
