"""Records of a split by number, in ArrayRecord files that are opened when first read."""

import collections
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.paths import as_path
from t5lite.data.sharded.manifest import Shard
from t5lite.errors import InputError

_OPEN = 256  # files at a time
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access


class Records:
    """Random access to the records of some shards, numbered in order; several threads may read.

    Raises: InputError if a file is missing.
    """

    def __init__(self, folder: str, shards: Sequence[Shard]):
        self._open(folder, tuple(shards))
        self._check_present()

    def __getstate__(self) -> tuple[str, tuple[Shard, ...]]:
        return self._folder, self._shards

    def __setstate__(self, state: tuple[str, tuple[Shard, ...]]) -> None:
        self._open(*state)

    def _open(self, folder: str, shards: tuple[Shard, ...]) -> None:
        self._folder, self._shards = folder, shards
        self._ends = np.cumsum([shard.records for shard in shards])
        self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, numbers: np.ndarray) -> list[bytes]:
        """Returns records by number, in order; raises InputError if a shard is damaged."""
        files = np.searchsorted(self._ends, numbers, side="right")
        records = [b""] * len(numbers)
        for file in np.unique(files).tolist():
            positions = np.flatnonzero(files == file)
            within = numbers[positions] - (self._ends[file] - self._shards[file].records)
            order = np.argsort(within, kind="stable")  # forwards through the file
            reader, lock = self._reader(file)
            try:
                with lock:
                    read = reader.read(within[order].tolist())
            except Exception as error:  # the library raises several kinds
                raise self._unreadable(file, error) from error
            for at, record in zip(positions[order].tolist(), read, strict=True):
                records[at] = record
        return records

    def _check_present(self) -> None:
        """Refuses missing and, on local disks, changed files, by one listing of the folder."""
        folder = as_path(self._folder)
        present = {path.name: path for path in folder.iterdir()}
        for shard in self._shards:
            if shard.file not in present:
                raise InputError(f"{folder / shard.file} is missing: copy the shard again")
            size = present[shard.file].stat().st_size if isinstance(folder, Path) else shard.bytes
            if size != shard.bytes:
                raise self._changed(shard, f"{size:,} bytes instead of {shard.bytes:,}")

    def _reader(self, file: int) -> tuple[Any, threading.Lock]:
        with self._lock:
            if file in self._readers:
                self._readers.move_to_end(file)
                return self._readers[file]
            shard = self._shards[file]
            try:
                reader = import_array_record().ArrayRecordReader(
                    str(as_path(self._folder) / shard.file), _OPTIONS
                )
                count = reader.num_records()
            except Exception as error:  # the library raises several kinds
                raise self._unreadable(file, error) from error
            if count != shard.records:
                raise self._changed(shard, f"{count:,} records instead of {shard.records:,}")
            self._readers[file] = reader, threading.Lock()
            if len(self._readers) > _OPEN:
                self._readers.popitem(last=False)
            return self._readers[file]

    def _changed(self, shard: Shard, how: str) -> InputError:
        return InputError(
            f"{as_path(self._folder) / shard.file} has changed: {how} as in manifest.json; copy "
            "the shard again, or write the corpus in another folder"
        )

    def _unreadable(self, file: int, error: Exception) -> InputError:
        path = as_path(self._folder) / self._shards[file].file
        reason = str(error).strip().partition("\n")[0][:200]
        return InputError(f"cannot read {path}: {reason}; copy the shard again")


def import_array_record() -> Any:
    """Returns the library's module; raises InputError if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ModuleNotFoundError as error:
        raise InputError(
            f"sharded corpora need {error.name}, which is not installed: pip install array_record"
        ) from error
    return array_record_module
