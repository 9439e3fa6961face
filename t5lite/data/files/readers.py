"""Rows of CSV, TSV, JSON-lines and text files: scanned once, then read by their byte positions.

Tables may be larger than memory; Parquet and the like are unpacked into files of lines first.
"""

import csv
import dataclasses
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from t5lite.data.files.opening import BOM, parse_json, status_of, unpacked
from t5lite.errors import InputError

Row = dict[str, Any]

# Characters of a CSV field; csv's own limit is 131,072, too few for a document.
_LONGEST_FIELD = 2**24


class Line(NamedTuple):
    """A row of a file, or the reason why it is broken."""

    number: int  # of its first line, from 1
    start: int  # its first byte
    end: int  # the byte after it
    row: Row | None  # its columns; None if it is broken
    problem: str = ""  # the reason


@dataclasses.dataclass
class DataFile:
    """A file of rows: scanned once from start to end, then read row by row.

    Attributes:
      path: of the file.
      format: one of `FORMATS`.
      column_names: of CSV and TSV; None: those in the first line.
      quotes, skip_spaces: see `FileData`.
      columns: all of them; set by a scan.
      digest: hex digest of the content and of the options above; set by a scan.
      lines: the file of lines that the rows' positions refer to, perhaps in the cache.
    """

    path: str
    format: str
    column_names: Sequence[str] | None = None
    quotes: bool = True
    skip_spaces: bool = False
    columns: Sequence[str] = ()
    digest: str = ""
    lines: str = ""

    def __post_init__(self) -> None:
        self._status = status_of(self.path)
        self.lines = self.lines or unpacked(self.path, self.format)

    @property
    def num_bytes(self) -> int:
        """An upper bound of `Line.end`."""
        return os.path.getsize(self.lines)

    def scan(self) -> Iterator[Line]:
        """Yields every row, good or broken, and sets `columns` (all, at the end) and `digest`."""
        self.columns = tuple(self.column_names or ())
        scanners = {"csv": self._scan_table, "tsv": self._scan_table}
        scanners |= {"text": self._scan_text, "document": self._scan_text}
        options = f"{self.format} {self.column_names} {self.quotes}"
        content = hashlib.sha256((options + " skip_spaces" * self.skip_spaces).encode())
        with open(self.lines, "rb") as file:
            yield from scanners.get(self.format, self._scan_json)(_Lines(file, content))
        self.digest = content.hexdigest()
        self._check_unchanged()

    def read(self, spans: Sequence[tuple[int, int]]) -> list[Row]:
        """Returns the rows at spans `(start, end)`; raises InputError if the file has changed."""
        self._check_unchanged()
        # Mapped: rows come in random order, and each would take a seek and a read.
        with (
            open(self.lines, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            texts = [content[start:end].decode() for start, end in spans]
        if self.format in ("csv", "tsv"):
            rows = self._table_rows(texts)
            return [dict(zip(self.columns, row, strict=True)) for row in rows]
        if self.format in ("text", "document"):
            return [{"text": text} for text in texts]
        return [parse_json(text) for text in texts]

    def _check_unchanged(self) -> None:
        if status_of(self.path) != self._status:
            raise InputError(
                f"{self.path} has changed since this job began to read it; restore it, or start "
                "a new run on the new file"
            )

    def _table_rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        return csv.reader(
            lines,
            delimiter="\t" if self.format == "tsv" else ",",
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            skipinitialspace=self.skip_spaces,
            strict=True,
        )

    def _scan_table(self, lines: "_Lines") -> Iterator[Line]:
        while not lines.at_end:
            rows = self._table_rows(lines)
            number, start = lines.next_row()
            try:
                for fields in rows:
                    if fields and not self.columns:
                        self.columns = _checked_names(fields, f"{self.path}:{number}")
                    elif fields:
                        yield self._table_line(number, start, lines.end, fields)
                    number, start = lines.next_row()
            except (csv.Error, UnicodeDecodeError) as error:
                if not self.columns:
                    raise InputError(f"{self.path}:{number}: {_reason(error)}") from error
                # An open quote swallows the lines after it: continue at the second of them.
                lines.back_to_second()
                yield Line(number, start, lines.end, None, _reason(error))
        if not self.columns:
            raise InputError(f"{self.path} is empty: its first line must name the columns")

    def _table_line(self, number: int, start: int, end: int, fields: list[str]) -> Line:
        if len(fields) == len(self.columns):
            return Line(number, start, end, dict(zip(self.columns, fields, strict=True)))
        problem = f"{len(fields)} fields instead of {len(self.columns)}"
        if self.quotes and any(field.startswith(' "') for field in fields):
            problem += "; a space before a quote makes it text: set skip_spaces = True"
        return Line(number, start, end, None, problem)

    def _scan_json(self, lines: "_Lines") -> Iterator[Line]:
        columns: dict[str, None] = {}
        is_first = True
        for number, start, raw in lines.raw():
            if not raw.strip():
                continue
            row, problem = None, ""
            try:
                row = parse_json(raw.decode())
                if b"\\ud" in raw.lower():  # half a surrogate pair is not text
                    json.dumps(row, ensure_ascii=False).encode()
                if not isinstance(row, dict):
                    row, problem = None, "JSON, but not an object in braces with a column a key"
            except RecursionError:
                problem = "broken JSON: nested too deep"
            except ValueError as error:
                row, problem = None, _reason(error)
                if is_first:
                    _refuse_document(self.path, self.lines)
            is_first = False
            columns.update(dict.fromkeys(row or ()))
            yield Line(number, start, lines.end, row, problem)
        self.columns = tuple(columns)

    def _scan_text(self, lines: "_Lines") -> Iterator[Line]:
        self.columns = ("text",)
        parts: Iterable[tuple[int, int, bytes]] = lines.raw()
        if self.format == "document":
            parts = [(1, lines.first, b"".join(raw for _, _, raw in parts).rstrip())]
        for number, start, raw in parts:
            content, row, problem = raw.rstrip(b"\r\n"), None, ""
            if content.strip():
                try:
                    row = {"text": content.decode()}
                except UnicodeDecodeError as error:
                    problem = _reason(error)
                yield Line(number, start, start + len(content), row, problem)


class _Lines:
    """Lines of a file, numbered, with their byte positions, and hashed once."""

    def __init__(self, file: Any, digest: Any):
        self._file, self._digest = file, digest
        self.first = len(BOM) if file.read(len(BOM)) == BOM else 0  # byte of text
        file.seek(0)
        self.end = self._number = self._hashed = 0  # the byte after the latest line; its number
        self._row_number, self._second = 1, (0, 0)
        self.at_end = False

    def __iter__(self) -> Iterator[str]:
        return (raw.decode() for _, _, raw in self.raw())

    def raw(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields the number, first byte and content of each line, without a byte order mark."""
        for raw in self._file:
            if self.end == self._hashed:  # not read again after `back_to_second`
                self._digest.update(raw)
                self._hashed += len(raw)
            start, self._number = self.end, self._number + 1
            self.end += len(raw)
            if self._number == self._row_number:
                self._second = (self._number, self.end)
            if start == 0:
                start, raw = self.first, raw[self.first :]
            yield self._number, start, raw
        self.at_end = True

    def next_row(self) -> tuple[int, int]:
        """Starts a row at the next line; returns its number and first byte."""
        self._row_number = self._number + 1
        return self._row_number, max(self.end, self.first)

    def back_to_second(self) -> None:
        """Returns to the second line of the current row."""
        self._number, self.end = self._second
        self._file.seek(self.end)
        self.at_end = False


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"not UTF-8: byte 0x{byte:02x} at its byte {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair, which is not text"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at character {error.colno}"
    reasons = {
        "unexpected end of data": "a quote that is opened here is not closed",
        "field larger than field limit": f"a field of more than {_LONGEST_FIELD:,} characters: "
        "close its quote, shorten it, or write JSON lines, which have no limit",
        "new-line character": "a carriage return in a field without quotes",
        "expected after": 'unbalanced quotes: text after a closing quote (write "" for a quote)',
    }
    return next((reason for text, reason in reasons.items() if text in str(error)), str(error))


def _checked_names(fields: list[str], location: str) -> tuple[str, ...]:
    names = [field.strip() for field in fields]
    if "" in names or len(set(names)) < len(names):
        problem = "is empty" if "" in names else "is repeated"
        raise InputError(
            f"{location}: a column's name {problem} in {names}; fix the first line, or name the "
            "columns of a file without such a line by FileData.column_names",
            field="FileData.column_names",
        )
    return tuple(names)


def _refuse_document(path: str, lines: str) -> None:
    """Refuses a file that is one JSON document: some of its lines may be rows by accident."""
    with open(lines, "rb") as file:
        try:
            document = json.loads(file.read())
        except (ValueError, RecursionError):
            return  # its first line is broken
    nested = ""
    for key, rows in document.items() if isinstance(document, dict) else ():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            nested = nested or f"; its rows seem to be the array under {key!r}: extract it"
    raise InputError(
        f"{path} is one JSON object over several lines: write JSON lines, an object a line, or an "
        f"array of objects{nested}"
    )
