"""Data files, found by path, pattern or dataset name, and unpacked once into the cache."""

import bz2
import glob
import gzip
import hashlib
import json
import lzma
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t5lite.data.paths import cache_folder, whole_file
from t5lite.errors import InputError, unknown

FORMATS = ("csv", "tsv", "jsonl", "parquet", "text", "document")
BOM = b"\xef\xbb\xbf"
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UNSUPPORTED = (".zst", ".zip")
_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_ENDINGS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl")
_ENDINGS |= dict.fromkeys((".txt", ".text", ".md"), "text")
_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}


def find_files(
    patterns: str | Sequence[str], *, field: str, repeated: dict[str, str] | None = None
) -> list[str]:
    """Returns the files that match any of the patterns, sorted by pattern and name, each once.

    A file is one file under all its names: `a.csv`, `./a.csv`, links to it.

    Args:
      patterns: paths, or patterns with `*`, `?`, `[…]` and `**` for any folders; or names of
        TensorFlow Datasets, see `tfds_file`.
      field: the parameter to name in errors.
      repeated: receives the omitted names, each with the name that it repeats.
    Raises: InputError if a pattern matches no file, with the nearest names.
    """
    patterns = [os.fspath(patterns)] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not patterns:
        raise InputError(f"{field} is empty: name at least one file or pattern", field=field)
    names: dict[tuple[int, int], str] = {}
    for pattern in patterns:
        for name in _matches(os.path.expanduser(os.fspath(pattern)), field):
            first = names.setdefault(file_id(name), name)
            if repeated is not None and name != first:
                repeated[name] = first
    return list(names.values())


def file_id(path: str) -> tuple[int, int]:
    """Returns the device and inode of a file, which all its names share."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _matches(path: str, field: str) -> list[str]:
    if path.startswith("tfds:"):
        from t5lite.data.files.tfds_files import tfds_file  # only now: it needs NumPy

        try:
            return [tfds_file(path)]
        except InputError as error:
            raise InputError(f"{field} = {error}", field=field) from error
    names = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [name for name in names if os.path.isfile(name)]
    folder, name = os.path.split(path)
    if files:
        return files
    if "://" in path:
        problem = "must be on this machine's disk; copy it there"
    elif os.path.isdir(path):
        problem = f"is a folder; write {path.rstrip('/')}/*.csv, say"
    elif glob.has_magic(path):
        problem = f"no file matches (from {os.getcwd()})"
    elif not os.path.isdir(folder or "."):
        problem = f"folder {folder!r} does not exist"
    else:
        problem = str(unknown("file", name, os.listdir(folder or ".")))
    raise InputError(f"{field} = {path!r}: {problem}", field=field)


def format_of(path: str, format: str | None) -> str:
    """Returns the `format`, or where that is None the one of the file's ending."""
    if format is not None:
        if format not in FORMATS:
            raise unknown("format", format, FORMATS, field="format")
        return format
    stem, ending = os.path.splitext(path)
    ending = Path(stem if ending in (*_COMPRESSED, *_UNSUPPORTED) else path).suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(
            f"{path}: unknown ending {ending!r}; set FileData.format to one of "
            f"{', '.join(FORMATS)}",
            field="FileData.format",
        )
    return _ENDINGS[ending]


def status_of(path: str) -> tuple[int, int]:
    """Returns a file's size and its modification time in nanoseconds, to detect changes."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; restore it") from error
    return status.st_size, status.st_mtime_ns


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; NaN, which some programs write for missing, is None."""
    return json.loads(text, parse_constant=_CONSTANTS.__getitem__)


def unpacked(path: str, format: str) -> str:
    """Returns the path of a file of lines: the file itself, or its content in the cache."""
    ending = os.path.splitext(path)[1]
    if ending in _UNSUPPORTED:
        raise InputError(
            f"{path}: {ending} is not supported; decompress it, or use {', '.join(_COMPRESSED)}"
        )
    if ending in _COMPRESSED:
        if format == "parquet":
            raise InputError(f"{path}: Parquet is compressed inside; decompress the file")
        path = _cached(path, _decompress)
    if format == "jsonl" and _starts_array(path):
        return _cached(path, _json_array)
    return _cached(path, _parquet) if format == "parquet" else path


def _cached(path: str, write: Callable[[str, Any], None]) -> str:
    """Returns the cache's file for a file's content, written whole or not at all."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_folder() / "files" / digest
    if target.exists():
        return str(target)
    try:
        with whole_file(target) as file:
            write(path, file)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be unpacked into {target.parent}: {error}; is the file whole, and "
            "the disk not full? (T5LITE_CACHE names another folder)"
        ) from error
    return str(target)


def _decompress(path: str, target: Any) -> None:
    with _COMPRESSED[os.path.splitext(path)[1]](path, "rb") as source:
        shutil.copyfileobj(source, target, 2**20)


def _starts_array(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        while block := file.read(4096):
            if start := block.lstrip():
                return start.startswith(b"[")
    return False


def _json_array(path: str, target: Any) -> None:
    try:
        with open(path, "rb") as file:
            items = parse_json(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} begins with '[' but is not a JSON array: {error}; fix it, or write JSON "
            "lines: an object a line"
        ) from error
    for item in items:
        target.write(json.dumps(item).encode() + b"\n")


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
    except UnicodeDecodeError:  # an image, say, which features cannot read
        return None
