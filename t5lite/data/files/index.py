"""The index of data files: positions and hashes of each split's rows, kept in the cache.

An entry of the cache is `index/KEY.json`, and the rows as an array that is memory-mapped. The key
depends on the files' names and on how they are read; their sizes and times (mtime and ctime) are
inside, so that the entry of changed files is replaced.
"""

import array
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.files.columns import Column
from t5lite.data.files.opening import status_of
from t5lite.data.files.readers import DataFile, Row
from t5lite.data.paths import cache_folder, locked, whole_file
from t5lite.errors import InputError

SPLITS = ("train", "validation")
_SHOWN = 5
_SPAN, _HASHES = slice(0, 3), slice(3, 6)  # columns of `Index.rows`
_encoded = json.JSONEncoder(sort_keys=True).encode
# Raise it when other lines become rows, or rows get other hashes.
_FORMAT = 1
# Seconds: a younger file may change again without a new modification time.
_SETTLED = 2.0
_SCANNED = ("columns", "digest", "lines")
_PLAIN = ("num_train", "classes", "num_lines", "num_broken", "first_broken", "num_shared")

Status = Sequence[tuple[int, int, int]]


class Hashes(NamedTuple):
    """64-bit hashes of a row's columns, or `[rows]` uint64 of many."""

    row: Any  # all columns
    content: Any  # the columns that features read
    group: Any  # the columns that decide the split


class Table:
    """Rows by number, in files that may be larger than memory; `rows` as in `Index`."""

    def __init__(self, files: Sequence[DataFile], rows: np.ndarray):
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def hashes(self) -> Hashes:
        return Hashes(*self._rows[:, _HASHES].view(np.uint64).T)

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Row]:
        """Returns rows by number; raises an InputError if a file has changed."""
        by_file: dict[int, list[tuple[int, int, int]]] = {}
        spans = self._rows[np.asarray(numbers, np.int64), _SPAN].tolist()
        for i, (file, start, end) in enumerate(spans):
            by_file.setdefault(file, []).append((start, end, i))
        rows: list[Row] = [{}] * len(spans)
        for file, parts in by_file.items():
            parts.sort()  # forwards through the file
            content = self._files[file].read([(start, end) for start, end, _ in parts])
            for (_, _, i), row in zip(parts, content, strict=True):
                rows[i] = row
        return rows


def hash_of(row: Row, columns: Iterable[str] | None = None) -> int:
    """Returns a 64-bit hash of a row's values, or of some columns'."""
    values = row if columns is None else {column: row.get(column) for column in columns}
    content = _encoded(values).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


Classes = Mapping[str, Mapping[str, Mapping[str, tuple[int, str]]]]


@dataclasses.dataclass(frozen=True)
class Index:
    """Result of scanning all files."""

    files: Sequence[DataFile]
    # `[rows, 6]` int64, training rows first: the number of a row's file, its first byte, the byte
    # after it, and the bits of its `Hashes`. May be memory-mapped.
    rows: np.ndarray
    num_train: int
    classes: Classes  # count and first location of each class, by split, feature and class
    num_lines: int  # rows, broken ones included
    num_broken: int
    first_broken: Sequence[str]  # location and problem
    num_shared: int  # validation rows whose content is trained on too

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        parts = np.split(self.rows, [self.num_train])
        return {split: Table(self.files, rows) for split, rows in zip(SPLITS, parts, strict=True)}

    @property
    def digest(self) -> str:
        return hashlib.sha256(" ".join(file.digest for file in self.files).encode()).hexdigest()

    def broken(self) -> str:
        """Returns the number of broken rows, and the first of them."""
        more = self.num_broken - len(self.first_broken)
        listed = [*self.first_broken, *([f"and {more:,} more"] if more else [])]
        head = f"{self.num_broken:,} of {self.num_lines:,} rows are broken:"
        return "\n  ".join([head, *listed])


def scan(
    files: Sequence[DataFile],
    columns: Mapping[str, Column],
    split_of: Callable[[int, Hashes], str],
    *,
    hashes: Callable[[Row], Hashes],
    extra: Iterable[str] = (),
    by_hash: bool = False,
) -> Index:
    """Reads all files once.

    Args:
      columns: by feature; decide which rows are broken.
      split_of: the split of a row, from the number of its file and its hashes.
      hashes: of a row.
      extra: columns that are added to rows later.
      by_hash: whether training rows are sorted by their hashes, rather than as in the files.
    """
    rows = {split: array.array("Q") for split in SPLITS}
    classes: dict[str, dict[str, dict[str, tuple[int, str]]]] = {
        split: {feature: {} for feature in columns} for split in SPLITS
    }
    added: Row = dict.fromkeys(extra, "")
    num_lines, num_broken, first_broken = 0, 0, list[str]()
    for number, file in enumerate(files):
        checked = False
        for line in file.scan():
            num_lines += 1
            if file.columns and not checked:  # JSON's are known at the end
                _check_columns(file, columns, added)
                checked = True
            problem = line.problem or _problem({**(line.row or {}), **added}, columns)
            if problem or line.row is None:
                num_broken += 1
                if num_broken <= _SHOWN:
                    first_broken.append(f"{file.path}:{line.number}: {problem}")
                continue
            row_hashes = hashes(line.row)
            split = split_of(number, row_hashes)
            rows[split].extend((number, line.start, line.end, *row_hashes))
            for feature, column in columns.items():
                counts = classes[split][feature]
                for name in column.classes_in(line.row):
                    count, first = counts.get(name) or (0, f"{file.path}:{line.number}")
                    counts[name] = count + 1, first
        if file.columns:
            _check_columns(file, columns, added)
    train, validation = (
        np.array(rows[split], np.uint64).view(np.int64).reshape(-1, 6) for split in SPLITS
    )
    if by_hash:
        train = train[np.argsort(Table(files, train).hashes.row, kind="stable")]
    contents = [Table(files, split).hashes.content for split in (train, validation)]
    return Index(
        files,
        np.concatenate([train, validation]),
        len(train),
        classes,
        num_lines,
        num_broken,
        first_broken,
        int(np.isin(contents[1], contents[0]).sum()),
    )


def _problem(row: Row, columns: Mapping[str, Column]) -> str:
    return next((problem for column in columns.values() if (problem := column.problem(row))), "")


def _check_columns(file: DataFile, columns: Mapping[str, Column], added: Iterable[str]) -> None:
    for feature, column in columns.items():
        try:
            column.check((*file.columns, *added))
        except InputError as error:
            field = error.field or "FileData.features"
            message = f"{file.path}, feature {feature!r}: {error}"
            raise InputError(message, field=field) from error


def cached_index(
    files: Sequence[dict[str, Any]], recipe: str | None, scan: Callable[[Sequence[DataFile]], Index]
) -> Index:
    """Returns the index of some files from the cache, or from `scan`.

    Of several processes that share the cache one scans, and the others wait for it. Without a
    writable cache every start scans.

    Args:
      files: the arguments of each `DataFile`.
      recipe: everything else that decides the index; None: unknown, so that nothing is cached.
      scan: reads the files.
    """
    # A replaced file may have the same size and mtime, but not the same ctime.
    status = [(*status_of(file["path"]), os.stat(file["path"]).st_ctime_ns) for file in files]
    settled = all(mtime / 1e9 < time.time() - _SETTLED for _, mtime, _ in status)
    if recipe is None or not settled:
        return scan([DataFile(**file) for file in files])
    named = [{**file, "absolute": os.path.abspath(file["path"])} for file in files]
    entry = cache_folder() / "index" / f"{_digest([_FORMAT, recipe, named])}.json"
    if index := _load(entry, files, status):
        return index
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a disk without locks, or read-only
            stack.enter_context(locked(entry.with_suffix(".lock")))
        if index := _load(entry, files, status):  # by the process that held the lock
            return index
        index = scan([DataFile(**file) for file in files])
        with contextlib.suppress(OSError):
            _save(entry, index, status)
        return index


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _save(entry: Path, index: Index, status: Status) -> None:
    array = entry.with_name(f"{entry.stem}-{_digest(status)}.npy")
    with whole_file(array) as file:
        np.save(file, index.rows)
    content = {
        "status": status,
        "array": array.name,
        "files": [[getattr(file, name) for name in _SCANNED] for file in index.files],
        **{name: getattr(index, name) for name in _PLAIN},
    }
    with whole_file(entry) as file:
        file.write(json.dumps(content).encode())
    for old in entry.parent.glob(f"{entry.stem}-*.npy"):
        if old != array:
            old.unlink()


def _load(entry: Path, files: Sequence[dict[str, Any]], status: Status) -> Index | None:
    """Returns an entry's index; None if it is missing, damaged, or of files that have changed."""
    try:
        content = json.loads(entry.read_bytes())
        if content["status"] != [*map(list, status)]:
            return None
        rows = np.load(entry.with_name(content["array"]), mmap_mode="r", allow_pickle=False)
        scans = [dict(zip(_SCANNED, scanned, strict=True)) for scanned in content["files"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if not all(os.path.exists(scanned["lines"]) for scanned in scans):  # unpacked ones may be gone
        return None
    opened = [DataFile(**file, **scanned) for file, scanned in zip(files, scans, strict=True)]
    return Index(opened, rows, **{name: content[name] for name in _PLAIN})
