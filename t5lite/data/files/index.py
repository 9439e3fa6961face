"""The rows of each split, by number, in files that may be larger than memory."""

import array
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.files.columns import Column
from t5lite.data.files.readers import DataFile, Line, Row
from t5lite.errors import InputError

SPLITS = ("train", "validation")
_SHOWN = 5
_PLACE, _HASHES = slice(0, 3), slice(3, 6)  # columns of an index
_encoded = json.JSONEncoder(sort_keys=True).encode


class Hashes(NamedTuple):
    """Of a row, or of many: integers of 64 bits, `[rows]` uint64. Equal columns have equal ones.

    Attributes:
      row: of all columns.
      content: of those that features read.
      group: of those that decide the split.
    """

    row: Any
    content: Any
    group: Any


class Table:
    """Rows that are known by their places in files and hashes.

    Args:
      files: that they are in.
      rows: `[rows, 6]` int64, see `Index.rows`; may be memory-mapped.
    """

    def __init__(self, files: Sequence[DataFile], rows: np.ndarray):
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def hashes(self) -> Hashes:
        """Those of all rows."""
        return Hashes(*self._rows[:, _HASHES].view(np.uint64).T)

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Row]:
        """Returns rows by number.

        Raises:
          InputError: if a file has changed.
        """
        by_file: dict[int, list[tuple[int, int, int]]] = {}
        places = self._rows[np.asarray(numbers, np.int64), _PLACE].tolist()
        for i, (file, start, end) in enumerate(places):
            by_file.setdefault(file, []).append((start, end, i))
        rows: list[Row] = [{}] * len(places)
        for file, parts in by_file.items():
            parts.sort()  # forwards through the file
            found = self._files[file].read([(start, end) for start, end, _ in parts])
            for (_, _, i), row in zip(parts, found, strict=True):
                rows[i] = row
        return rows


def hash_of(row: Row, columns: Iterable[str] | None = None) -> int:
    """Returns 64 bits that depend on the values of a row alone, or of some of its columns."""
    values = row if columns is None else {column: row.get(column) for column in columns}
    content = _encoded(values).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


Classes = Mapping[str, Mapping[str, Mapping[str, tuple[int, str]]]]


@dataclasses.dataclass(frozen=True)
class Index:
    """What one reading of all files finds: the rows of each split, their classes, broken lines.

    Attributes:
      files: that were read.
      rows: `[rows, 6]` int64, those to train on first: a row's file, first byte and the byte after
        it, and the bits of its `Hashes`.
      num_train: rows to train on.
      classes: how often each class occurs and where first, by split, feature and class.
      num_lines: rows, broken ones included.
      num_broken: rows that are broken.
      first_broken: some of them, and what is wrong.
      num_shared: rows to validate on whose content is trained on as well.
    """

    files: Sequence[DataFile]
    rows: np.ndarray
    num_train: int
    classes: Classes
    num_lines: int
    num_broken: int
    first_broken: Sequence[str]
    num_shared: int

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        """The rows, by split."""
        parts = self.rows[: self.num_train], self.rows[self.num_train :]
        return {split: Table(self.files, rows) for split, rows in zip(SPLITS, parts, strict=True)}

    @property
    def digest(self) -> str:
        """Hex digest of all files' content."""
        parts = [file.digest for file in self.files]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def broken(self) -> str:
        """Returns how many lines are broken, and the first of them."""
        more = self.num_broken - len(self.first_broken)
        listed = [*self.first_broken, *([f"and {more:,} more"] if more else [])]
        head = f"{self.num_broken:,} of {self.num_lines:,} rows are broken:"
        return "\n  ".join([head, *listed])


def scan(
    files: Sequence[DataFile],
    columns: Mapping[str, Column],
    side: Callable[[int, Hashes], str],
    *,
    hashes: Callable[[Row], Hashes],
    extra: Iterable[str] = (),
    by_hash: bool = False,
) -> Index:
    """Reads all files once.

    Args:
      files: to read.
      columns: what is made of rows, by feature; decides which rows are broken.
      side: the split of a row, given the number of its file and its hashes.
      hashes: of a row.
      extra: columns that rows get later.
      by_hash: whether rows to train on come in the order of their hashes, and not in the files'.

    Raises:
      InputError: if a file lacks a column.
    """
    scanning = _Scanning(columns, side, hashes, dict.fromkeys(extra, ""))
    for number, file in enumerate(files):
        checked = False
        for line in file.scan():
            if file.columns and not checked:  # JSON's are known at the end
                scanning.check_columns(file)
                checked = True
            scanning.take(number, file, line)
        if file.columns:
            scanning.check_columns(file)
    train, validation = (
        np.array(scanning.rows[split], np.uint64).view(np.int64).reshape(-1, 6) for split in SPLITS
    )
    if by_hash:
        train = train[np.argsort(Table(files, train).hashes.row, kind="stable")]
    trained, tested = (Table(files, rows).hashes.content for rows in (train, validation))
    return Index(
        files,
        np.concatenate([train, validation]),
        len(train),
        scanning.classes,
        scanning.num_lines,
        scanning.num_broken,
        scanning.first_broken,
        int(np.isin(tested, trained).sum()),
    )


class _Scanning:
    """What was found up to now; see `scan` and `Index`."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        side: Callable[[int, Hashes], str],
        hashes: Callable[[Row], Hashes],
        extra: Mapping[str, str],
    ):
        self._columns, self._side, self._hashes, self._extra = columns, side, hashes, extra
        self.rows = {split: array.array("Q") for split in SPLITS}
        self.classes: dict[str, dict[str, dict[str, tuple[int, str]]]] = {
            split: {feature: {} for feature in columns} for split in SPLITS
        }
        self.num_lines = self.num_broken = 0
        self.first_broken: list[str] = []

    def check_columns(self, file: DataFile) -> None:
        for feature, column in self._columns.items():
            try:
                column.check((*file.columns, *self._extra))
            except InputError as error:
                raise InputError(
                    f"{file.path}, feature {feature!r}: {error}",
                    field=error.field or "FileData.features",
                ) from error

    def take(self, number: int, file: DataFile, line: Line) -> None:
        self.num_lines += 1
        problem = line.problem or self._problem(line.row or {})
        if problem or line.row is None:
            self.num_broken += 1
            if len(self.first_broken) < _SHOWN:
                self.first_broken.append(f"{file.path}:{line.number}: {problem}")
            return
        hashes = self._hashes(line.row)
        split = self._side(number, hashes)
        self.rows[split].extend((number, line.start, line.end, *hashes))
        for feature, column in self._columns.items():
            classes = self.classes[split][feature]
            for name in column.classes_in(line.row):
                count, where = classes.get(name) or (0, f"{file.path}:{line.number}")
                classes[name] = count + 1, where

    def _problem(self, row: Row) -> str:
        extended = {**row, **self._extra} if self._extra else row
        for column in self._columns.values():
            if problem := column.problem(extended):
                return problem
        return ""
