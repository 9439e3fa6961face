"""TensorFlow Datasets by name, as files: `tfds:glue/sst2#validation` is JSON lines in the cache."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio
from t5lite.data.paths import cache_folder, whole_file
from t5lite.errors import InputError, unknown

PREFIX = "tfds:"
_NAME = re.compile(r"[\w./-]+(:[\d.*]+)?")


def tfds_file(name: str) -> str:
    """Returns a file with a split's examples as JSON lines, written at first use.

    Class numbers become names; nested features have names with slashes, `answers/text`; images,
    sequences of sequences and other tensors are left out. The dataset must fit on this disk twice:
    for larger ones use a SeqIO task with a `seqio.TfdsDataSource`.

    Args:
      name: `tfds:NAME`, with optional `/CONFIG`, `:VERSION` and `#SPLIT`; the split is `train` by
        default, and may be any that TFDS understands, such as `train[:10%]`. It must have been
        prepared (`tfds build NAME`); nothing is downloaded here.
    Raises: InputError if the dataset or split is unknown or not prepared, or the cache is full.
    """
    builder, split = _builder(name)
    splits = builder.info.splits
    sizes = [(key, list(info.shard_lengths)) for key, info in splits.items()]
    content = [str(builder.data_path), split, splits[split].num_examples, sizes]
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    stem = re.sub(r"\W+", "_", f"{builder.info.full_name}_{split}").strip("_")
    target = cache_folder() / "tfds" / f"{stem}-{digest}.jsonl"
    if target.exists():
        return str(target)
    try:
        with whole_file(target) as file:
            for row in _rows(builder, split):
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; set T5LITE_CACHE") from error
    return str(target)


def _builder(name: str) -> tuple[Any, str]:
    import_seqio()  # imports TensorFlow Datasets, and keeps TensorFlow off the accelerators
    import tensorflow_datasets as tfds

    dataset, _, split = name.removeprefix(PREFIX).partition("#")
    split = split or "train"
    if not _NAME.fullmatch(dataset):  # TFDS would ask the network for those of a namespace
        raise InputError(
            f"{name!r}: must be tfds:NAME, with optional /CONFIG, :VERSION and #SPLIT; "
            "copy community datasets, NAMESPACE:NAME, to a file"
        )
    try:
        builder = tfds.builder(dataset)
    except Exception as error:  # of many kinds, with many lines
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name!r}: TensorFlow Datasets has no {dataset!r}: {reason}") from error
    if not builder.is_prepared():
        raise InputError(
            f"{name!r} is not prepared in {builder.data_path}: run `tfds build {dataset}` on "
            "a machine with a network, or set TFDS_DATA_DIR to its folder"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise InputError(f"{name!r}: {unknown('split', split, builder.info.splits)}") from error
    return builder, split


def _rows(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    read_config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=read_config)
    for example in tfds.as_numpy(dataset):
        yield dict(_columns(example, features))


def _columns(example: Mapping[str, Any], features: Any, path: str = "") -> Iterator:
    """Yields the name and value of each column that fits into JSON."""
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
    # Examples without a label have -1.
    return names(value) if names is not None and isinstance(value, int) and value >= 0 else value
