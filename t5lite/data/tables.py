"""The rows of each split, by number, in files that may be larger than memory."""

import array
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5lite.data.columns import Column
from t5lite.data.readers import DataFile, Line, Row
from t5lite.errors import InputError

_SHOWN = 5


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

    Attributes:
      hashes: of all rows.
    """

    def __init__(self, files: Sequence[DataFile]):
        self._files = files
        self._places, self._hashes = array.array("q"), array.array("Q")

    def add(self, file: int, start: int, end: int, hashes: Hashes) -> None:
        """Adds a row by its place."""
        self._places.extend((file, start, end))
        self._hashes.extend(hashes)

    def __len__(self) -> int:
        return len(self._hashes) // len(Hashes._fields)

    @property
    def hashes(self) -> Hashes:
        return Hashes(*np.array(self._hashes, np.uint64).reshape(-1, len(Hashes._fields)).T)

    @property
    def digest(self) -> str:
        """Hex digest of all files' content, the ones of other splits included."""
        parts = [file.digest for file in self._files]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def sort(self) -> None:
        """Puts the rows in the order of their hashes: no more in that of the files."""
        order = np.argsort(self.hashes.row, kind="stable")
        places = np.array(self._places, np.int64).reshape(-1, 3)[order]
        hashes = np.stack(self.hashes, axis=1)[order]
        self._places = array.array("q", places.tobytes())
        self._hashes = array.array("Q", hashes.tobytes())

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Row]:
        """Returns rows by number.

        Raises:
          InputError: if a file has changed.
        """
        by_file: dict[int, list[tuple[int, int, int]]] = {}
        for i, number in enumerate(numbers):
            file, start, end = self._places[3 * number : 3 * number + 3]
            by_file.setdefault(file, []).append((start, end, i))
        rows: list[Row] = [{}] * len(numbers)
        for file, places in by_file.items():
            places.sort()  # forwards through the file
            found = self._files[file].read([(start, end) for start, end, _ in places])
            for (_, _, i), row in zip(places, found, strict=True):
                rows[i] = row
        return rows


def hash_of(row: Row, columns: Iterable[str] | None = None) -> int:
    """Returns 64 bits that depend on the values of a row alone, or of some of its columns."""
    values = row if columns is None else {column: row.get(column) for column in columns}
    content = json.dumps(values, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


class Scan:
    """What one reading of all files finds: the rows of each split, their classes, broken lines.

    Args:
      files: to read.
      columns: what is made of rows, by feature; decides which rows are broken.
      side: the split of a row, given the number of its file and its hashes.
      hashes: of a row.
      extra: columns that rows get later.

    Attributes:
      tables: the rows, by split.
      classes: how often each class occurs and where first, by split, feature and class.
      num_lines: rows, broken ones included.
      num_broken: rows that are broken.

    Raises:
      InputError: if a file lacks a column.
    """

    def __init__(
        self,
        files: Sequence[DataFile],
        columns: Mapping[str, Column],
        side: Callable[[int, Hashes], str],
        *,
        hashes: Callable[[Row], Hashes],
        extra: Iterable[str] = (),
    ):
        self._columns, self._extra = columns, dict.fromkeys(extra, "")
        self._side, self._hashes = side, hashes
        splits = ("train", "validation")
        self.tables = {split: Table(files) for split in splits}
        self.classes: dict[str, dict[str, dict[str, tuple[int, str]]]] = {
            split: {feature: {} for feature in columns} for split in splits
        }
        self.num_lines = self.num_broken = 0
        self._first_broken: list[str] = []
        for number, file in enumerate(files):
            checked = False
            for line in file.scan():
                if file.columns and not checked:  # JSON's are known at the end
                    self._check_columns(file)
                    checked = True
                self._take(number, file, line)
            if file.columns:
                self._check_columns(file)

    def broken(self) -> str:
        """Returns how many lines are broken, and the first of them."""
        more = self.num_broken - len(self._first_broken)
        listed = [*self._first_broken, *([f"and {more:,} more"] if more else [])]
        head = f"{self.num_broken:,} of {self.num_lines:,} rows are broken:"
        return "\n  ".join([head, *listed])

    def _check_columns(self, file: DataFile) -> None:
        for feature, column in self._columns.items():
            try:
                column.check((*file.columns, *self._extra))
            except InputError as error:
                raise InputError(f"{file.path}, feature {feature!r}: {error}") from error

    def _take(self, number: int, file: DataFile, line: Line) -> None:
        self.num_lines += 1
        problem = line.problem or self._problem(line.row or {})
        if problem or line.row is None:
            self.num_broken += 1
            if len(self._first_broken) < _SHOWN:
                self._first_broken.append(f"{file.path}:{line.number}: {problem}")
            return
        hashes = self._hashes(line.row)
        split = self._side(number, hashes)
        self.tables[split].add(number, line.start, line.end, hashes)
        for feature, column in self._columns.items():
            classes = self.classes[split][feature]
            for name in column.classes_in(line.row):
                count, where = classes.get(name) or (0, f"{file.path}:{line.number}")
                classes[name] = count + 1, where

    def _problem(self, row: Row) -> str:
        extended = row | self._extra if self._extra else row
        problems = (column.problem(extended) for column in self._columns.values())
        return next(filter(None, problems), "")
