"""Rows of CSV, TSV, JSON, Parquet and text files, found once and then read by their place.

Every file is a file of lines on this machine, uncompressed, in the end: compressed ones, Parquet
and JSON arrays are written out once, into the cache. So a row is a place in bytes, tables may be
larger than memory, and any row can be read at any time.
"""

import bz2
import csv
import dataclasses
import glob
import gzip
import hashlib
import json
import lzma
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5lite.data.paths import cache_folder, whole_file
from t5lite.errors import InputError, unknown

Row = dict[str, Any]

FORMATS = ("csv", "tsv", "jsonl", "parquet", "text", "document")
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
# Characters of a CSV field; csv's own limit is 131,072, which is little for a document.
_LONGEST_FIELD = 2**24
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A row in a file, or what is wrong with it.

    Attributes:
      number: of its first line, from 1.
      start: its first byte.
      end: the byte after it.
      row: its columns; None if it is broken.
      problem: how; empty if it is not.
    """

    number: int
    start: int
    end: int
    row: Row | None
    problem: str = ""


def find_files(
    patterns: str | Sequence[str], *, field: str, repeated: dict[str, str] | None = None
) -> list[str]:
    """Returns the files that match any of the patterns, sorted by pattern and name, each once.

    A file is one file under all its names: `a.csv`, `./a.csv`, links to it.

    Args:
      patterns: paths, or patterns with `*`, `?`, `[…]` and `**` for any folders; or names of
        TensorFlow Datasets, see `tfds_file`.
      field: whose value they are, for the message.
      repeated: is filled with the names that were left out, and the one that each repeats.

    Raises:
      InputError: if a pattern matches none, naming the nearest.
    """
    patterns = [os.fspath(patterns)] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not patterns:
        raise InputError(f"{field} is empty: name at least one file or pattern")
    found: dict[tuple[int, int], str] = {}
    for pattern in patterns:
        for name in _matches(os.path.expanduser(os.fspath(pattern)), field):
            first = found.setdefault(file_id(name), name)
            if repeated is not None and name != first:
                repeated[name] = first
    return list(found.values())


def file_id(path: str) -> tuple[int, int]:
    """Returns what all names of a file share: its device and inode."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _matches(path: str, field: str) -> list[str]:
    if path.startswith("tfds:"):
        from t5lite.data.files.tfds_files import tfds_file  # only now: it needs NumPy

        return [tfds_file(path)]
    if "://" in path:
        raise InputError(
            f"{field} = {path!r}: must be on this machine's disk; copy it there", field=field
        )
    names = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [name for name in names if os.path.isfile(name)]
    if not files:
        raise _no_file(field, path)
    return files


def _no_file(field: str, path: str) -> InputError:
    if os.path.isdir(path):
        return InputError(
            f"{field} = {path!r}: is a folder; write {path.rstrip('/')}/*.csv, say", field=field
        )
    folder, name = os.path.split(path)
    if glob.has_magic(path):
        return InputError(f"{field} = {path!r}: no file matches (from {os.getcwd()})", field=field)
    if not os.path.isdir(folder or "."):
        return InputError(f"{field} = {path!r}: there is no folder {folder!r}", field=field)
    return InputError(
        f"{field} = {path!r}: {unknown('file', name, os.listdir(folder or '.'))}", field=field
    )


def format_of(path: str, format: str | None) -> str:
    """Returns the format of a file: the one that is given, or what its ending says.

    Raises:
      InputError: if there is no such format, or the ending says none.
    """
    if format is not None:
        if format not in FORMATS:
            raise unknown("format", format, FORMATS)
        return format
    ending = Path(_without_compression(path)).suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(
            f"{path}: the ending {ending!r} says no format; set FileData.format to one of "
            f"{', '.join(FORMATS)}"
        )
    return _ENDINGS[ending]


class Facts(NamedTuple):
    """What a scan finds out about a file.

    Attributes:
      columns: all of them.
      digest: hex digest of the content, and of how it is read.
      lines: the file that the rows' places are in: itself, or what was made of it in the cache.
    """

    columns: tuple[str, ...]
    digest: str
    lines: str


@dataclasses.dataclass
class DataFile:
    """One file: scanned once from start to end, and then read row by row.

    Attributes:
      path: what the user named.
      format: one of `FORMATS`.
      column_names: of CSV and TSV; None: the first line has them.
      quotes: whether fields of CSV and TSV may be in double quotes.
      skip_spaces: whether spaces at the start of their fields are left out, as in `a, "b, c"`.
      facts: what a scan found; None before the first.
    """

    path: str
    format: str
    column_names: Sequence[str] | None = None
    quotes: bool = True
    skip_spaces: bool = False
    facts: Facts | None = None

    def __post_init__(self) -> None:
        self._status = status_of(self.path)
        self._lines = self.facts.lines if self.facts else _as_lines(self.path, self.format)
        self.columns = self.facts.columns if self.facts else ()

    @property
    def digest(self) -> str:
        """That of the facts; empty before the first scan."""
        return self.facts.digest if self.facts else ""

    @property
    def num_bytes(self) -> int:
        """The bytes that `Line.end` of the last line is at most."""
        return os.path.getsize(self._lines)

    def scan(self) -> Iterator[Line]:
        """Yields every row, good or broken, and sets `columns` (all, at the end) and `facts`.

        Raises:
          InputError: if there is no line of column names, or they are not names.
        """
        self.columns = tuple(self.column_names or ())
        scanners = {"csv": self._scan_table, "tsv": self._scan_table, "text": self._scan_text}
        scanners["document"] = self._scan_document
        options = f"{self.format} {self.column_names} {self.quotes}"
        content = hashlib.sha256((options + " skip_spaces" * self.skip_spaces).encode())
        with open(self._lines, "rb") as file:
            yield from scanners.get(self.format, self._scan_json)(_Lines(file, content))
        self.facts = Facts(self.columns, content.hexdigest(), self._lines)
        self._check_unchanged()

    def read(self, places: Sequence[tuple[int, int]]) -> list[Row]:
        """Returns the rows between the given bytes.

        Raises:
          InputError: if the file has changed since it was scanned.
        """
        self._check_unchanged()
        raw = []
        with open(self._lines, "rb") as file:
            for start, end in places:
                file.seek(start)
                raw.append(file.read(end - start).decode())
        if self.format in ("csv", "tsv"):
            rows = self._table_rows(raw)
            return [dict(zip(self.columns, row, strict=True)) for row in rows]
        if self.format in ("text", "document"):
            return [{"text": text} for text in raw]
        return [_parsed(text) for text in raw]

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
                        yield self._table_line(number, start, lines.at, fields)
                    number, start = lines.next_row()
            except (csv.Error, UnicodeDecodeError) as error:
                if not self.columns:
                    raise InputError(f"{self.path}:{number}: {_said(error)}") from error
                # An open quote swallows the lines after it: go on with the second of them.
                lines.back_to_second()
                yield Line(number, start, lines.at, None, _said(error))
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
        found: dict[str, None] = {}
        is_first = True
        for number, start, raw in lines.raw():
            if not raw.strip():
                continue
            row, problem = None, ""
            try:
                row = _parsed(raw.decode())
                if b"\\ud" in raw.lower():  # half a surrogate pair is not text
                    json.dumps(row, ensure_ascii=False).encode()
                if not isinstance(row, dict):
                    row, problem = None, "JSON, but not an object in braces with a column a key"
            except RecursionError:
                problem = "broken JSON: nested too deep"
            except ValueError as error:
                row, problem = None, _said(error)
                if is_first:
                    _check_lines(self.path, self._lines)
            is_first = False
            found.update(dict.fromkeys(row or ()))
            yield Line(number, start, lines.at, row, problem)
        self.columns = tuple(found)

    def _scan_text(self, lines: "_Lines") -> Iterator[Line]:
        self.columns = ("text",)
        for number, start, raw in lines.raw():
            content = raw.rstrip(b"\r\n")
            if content.strip():
                yield _text_line(number, start, content)

    def _scan_document(self, lines: "_Lines") -> Iterator[Line]:
        self.columns = ("text",)
        parts = list(lines.raw())
        if content := b"".join(raw for _, _, raw in parts).rstrip():
            yield _text_line(1, parts[0][1], content)


class _Lines:
    """The lines of a file as text, for csv, counted in lines and bytes."""

    def __init__(self, file: Any, digest: Any):
        self._file, self._digest = file, digest
        self._first = len(_BOM) if file.read(len(_BOM)) == _BOM else 0  # byte of text
        file.seek(0)
        self.at = self._number = self._hashed = 0
        self._second = (0, 0)
        self._rows_line = 1
        self.at_end = False

    def __iter__(self) -> Iterator[str]:
        return (raw.decode() for _, _, raw in self.raw())

    def raw(self) -> Iterator[tuple[int, int, bytes]]:
        """Yields the number, first byte and content of each line, without a byte order mark."""
        for raw in self._file:
            if self.at == self._hashed:  # and not gone back
                self._digest.update(raw)
                self._hashed += len(raw)
            start, self._number = self.at, self._number + 1
            self.at += len(raw)
            if self._number == self._rows_line:
                self._second = (self._number, self.at)
            if start == 0:
                start, raw = self._first, raw[self._first :]
            yield self._number, start, raw
        self.at_end = True

    def next_row(self) -> tuple[int, int]:
        """Returns the number of the next line and its first byte, where a row begins."""
        self._rows_line = self._number + 1
        return self._rows_line, max(self.at, self._first)

    def back_to_second(self) -> None:
        """Returns to the second line of the row that was begun."""
        self._number, self.at = self._second
        self._file.seek(self.at)
        self.at_end = False


def _text_line(number: int, start: int, content: bytes) -> Line:
    end = start + len(content)
    try:
        return Line(number, start, end, {"text": content.decode()})
    except UnicodeDecodeError as error:
        return Line(number, start, end, None, _said(error))


def _said(error: Exception) -> str:
    """Returns what is wrong with a line, in the words of its writer."""
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"not UTF-8: byte 0x{byte:02x} at its byte {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair, which is not text"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at character {error.colno}"
    known = {
        "unexpected end of data": "a quote that is opened here is not closed",
        "field larger than field limit": f"a field of more than {_LONGEST_FIELD:,} characters: "
        "close its quote, shorten it, or write JSON lines, which have no limit",
        "new-line character": "a carriage return in a field without quotes",
        "expected after": 'unbalanced quotes: text after a closing quote (write "" for a quote)',
    }
    return next((say for text, say in known.items() if text in str(error)), str(error))


def _checked_names(fields: list[str], where: str) -> tuple[str, ...]:
    names = [field.strip() for field in fields]
    if "" in names or len(set(names)) < len(names):
        wrong = "is empty" if "" in names else "is there twice"
        raise InputError(
            f"{where}: a column's name {wrong} in {names}; fix the first line, or name the "
            "columns of a file without such a line by FileData.column_names"
        )
    return tuple(names)


def status_of(path: str) -> tuple[int, int]:
    """Returns what changes when a file does: its size, and its time of change in nanoseconds."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; restore it") from error
    return status.st_size, status.st_mtime_ns


def _without_compression(path: str) -> str:
    stem, ending = os.path.splitext(path)
    return stem if ending in _COMPRESSED or ending in (".zst", ".zip") else path


def _as_lines(path: str, format: str) -> str:
    """Returns the path of a file of lines: the file itself, or what was made of it in the cache."""
    ending = os.path.splitext(path)[1]
    if ending in (".zst", ".zip"):
        raise InputError(
            f"{path}: {ending} is not supported; decompress it, or use {', '.join(_COMPRESSED)}"
        )
    if ending in _COMPRESSED:
        if format == "parquet":
            raise InputError(f"{path}: Parquet is compressed inside; decompress the file")
        path = _cached(path, lambda target: _decompress(path, target))
    if format == "jsonl" and _begins_array(path):
        return _cached(path, lambda target: _json_array(path, target))
    if format == "parquet":
        return _cached(path, lambda target: _parquet(path, target))
    return path


def _cached(path: str, write: Callable[[Any], None]) -> str:
    """Returns the cache's file for a file's content, written whole or not at all."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_folder() / "files" / digest
    if target.exists():
        return str(target)
    try:
        with whole_file(target) as file:
            write(file)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be unpacked into {target.parent}: {error}; is the file whole, and "
            "the disk not full? (T5LITE_CACHE names another folder)"
        ) from error
    return str(target)


def _decompress(path: str, target: Any) -> None:
    with _COMPRESSED[os.path.splitext(path)[1]](path, "rb") as source:
        shutil.copyfileobj(source, target, 2**20)


def _begins_array(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)
        while block := file.read(4096):
            if start := block.lstrip():
                return start.startswith(b"[")
    return False


def _json_array(path: str, target: Any) -> None:
    """Writes the items of a JSON array as JSON lines."""
    try:
        with open(path, "rb") as file:
            items = _parsed(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} begins with '[' but is not a JSON array: {error}; fix it, or write JSON "
            "lines: an object a line"
        ) from error
    for item in items:
        target.write(json.dumps(item).encode() + b"\n")


def _check_lines(path: str, lines: str) -> None:
    """Refuses a file that is one JSON document: some of its lines may be rows by accident."""
    with open(lines, "rb") as file:
        try:
            document = json.loads(file.read())
        except (ValueError, RecursionError):
            return  # its first line is broken
    tables = [
        key
        for key, value in (document.items() if isinstance(document, dict) else ())
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    nested = (
        f"; its rows seem to be the array under {tables[0]!r}: keep that alone" if tables else ""
    )
    raise InputError(
        f"{path} is one JSON object over several lines: write JSON lines, an object a line, or an "
        f"array of objects{nested}"
    )


def _parsed(text: str) -> Any:
    """Returns what JSON says; NaN, which others write for what is missing, is null."""
    return json.loads(text, parse_constant=_CONSTANTS.__getitem__)


def _parquet(path: str, target: Any) -> None:
    """Writes a Parquet file as JSON lines; dates and the like become text, other bytes null."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install pyarrow"
        ) from error
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                target.write(json.dumps(row, ensure_ascii=False, default=_as_text).encode() + b"\n")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _as_text(value: Any) -> str | None:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:  # an image, say, which no feature needs to use
        return None
