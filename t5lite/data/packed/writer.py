"""Writer of packed caches: a run's data tokenised, prepared and packed once."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from t5lite.data.dataset import Dataset
from t5lite.data.packed import format as packed_files
from t5lite.data.sources import Example, NoSplit
from t5lite.data.streams.examples import Stream
from t5lite.data.streams.rows import RowStream
from t5lite.data.validation import num_rows
from t5lite.errors import InputError
from t5lite.rows import HostHalf, token_names

_SPLITS = ("train", "validation")
_WRITTEN_ROWS = 256


def write_packed(
    data: Dataset,
    objective: HostHalf,
    folder: str | os.PathLike,
    *,
    epochs: int = 1,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda split, rows: None,
) -> dict[str, Any]:
    """Writes the rows that an objective makes of data, for `PackedData`; returns the description.

    A pass over a mixture draws at its rates and ends when every part has been read at least once.

    Args:
      data: its training split is read `epochs` times, with different randomness, and its
        validation split once, if there is one.
      objective: prepares the examples.
      folder: a local folder that is new or empty; it appears whole or not at all.
      epochs: >= 1.
      seed: of order and preparation.
      progress: called with a split, and how many more rows of it are written.
    Raises: InputError if the data or the folder cannot be used.
    """
    if epochs < 1:
        raise InputError(f"epochs = {epochs}: must be at least 1", field="epochs")
    specs, digest = objective.rows(data.lengths), hashlib.sha256()
    passes: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
    with packed_files.whole_folder(folder) as writing:

        def write(split: str, examples: Stream) -> None:
            rows = RowStream(
                examples, specs, packed=data.packs(objective), block_rows=data.rows_per_block()
            )
            writer = packed_files.RowWriter(writing / f"{split}-{len(passes[split])}", digest)
            note = functools.partial(progress, split)
            passes[split].append(_write_rows(rows, writer, names=token_names(specs), progress=note))

        train = data.components(data.split_of("train"), objective)
        for epoch in range(epochs):
            stream = data.stream(train, seed=seed)
            write("train", _OnePass(stream, epoch))
        try:
            validation = data.components(data.split_of("validation"), objective)
        except NoSplit:  # and the cache has none
            validation = []
        if validation:
            write("validation", data.stream(validation, seed=0, repeat=False))
        vocabulary = data.vocabulary()
        if vocabulary is not None:
            vocabulary.save(writing / "vocabulary")
        description = {
            "format": packed_files.FORMAT,
            "objective": objective.identity(),
            "start_id": objective.first_id,
            "vocabulary": vocabulary and vocabulary.fingerprint,
            "add_eos": data.add_eos(),
            "lengths": dict(data.lengths),
            "rows": {name: dataclasses.asdict(spec) for name, spec in specs.items()},
            "pack": data.packs(objective),
            "seed": seed,
            "sources": {component.source.name: component.rate for component in train},
            "described": data.describe(),
            "classes": {"train": data.class_counts(data.split_of("train"))},
            "labels": data.labels(),
            "inputs": dataclasses.asdict(data.input_format()),
            "passes": passes,
            "sha256": digest.hexdigest(),
        }
        local = str(packed_files.local_folder(folder))
        (writing / "use.gin").write_text(use_gin("PackedData", local, pack=data.pack))
        text = json.dumps(description, indent=2) + "\n"
        (writing / packed_files.DESCRIPTION).write_text(text, encoding="utf-8")
    return description


class _OnePass:
    """One pass of an endless stream of examples."""

    def __init__(self, stream: Stream, epoch: int):
        stream.begin(epoch)
        self._stream, self._end = stream, epoch + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> "_OnePass":
        return self

    def __next__(self) -> Example:
        example = next(self._stream)
        if self._stream.passes >= self._end:  # this one is of the next pass
            raise StopIteration
        return example


def _write_rows(
    rows: RowStream,
    writer: packed_files.RowWriter,
    *,
    names: Iterable[str],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Writes a pass, and returns its description."""
    tokens: dict[str, int] = {}
    num_examples, columns = 0, {}
    while True:
        chunk = rows.take(_WRITTEN_ROWS)
        if not (size := num_rows(chunk)):
            break
        columns = {name: (v.shape[1:], str(v.dtype)) for name, v in chunk.items()}
        per_row = np.ones(size, np.int64)
        for name in names:
            segments = chunk[f"{name}_segment_ids"]
            tokens[name] = tokens.get(name, 0) + int(np.count_nonzero(segments))
            per_row = np.maximum(per_row, segments.max(axis=1))
        num_examples += int(per_row.sum())
        writer.append(chunk)
        progress(size)
    writer.close()
    counts = {"rows": writer.num_rows, "examples": num_examples}
    return counts | {"tokens": tokens, "columns": columns}


def use_gin(dataset: str, folder: str, *, pack: bool) -> str:
    """Returns a configuration that trains on a folder, by the name of a dataset's class."""
    return f"""# Trains on this folder: t5lite train --gin_file=CONFIG --gin_file=THIS_FILE
from __gin__ import dynamic_registration
import t5lite

t5lite.train.data = @t5lite.data.{dataset}()
t5lite.data.{dataset}:
  folder = {folder!r}
  lengths = %TASK_FEATURE_LENGTHS
  batch_size = %BATCH_SIZE
  pack = {pack}
"""
