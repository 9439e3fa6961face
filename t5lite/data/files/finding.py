"""Data files by path, pattern or dataset name, and their formats."""

import bz2
import glob
import gzip
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t5lite.errors import InputError, unknown

FORMATS = ("csv", "tsv", "jsonl", "parquet", "text", "document")
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNSUPPORTED = (".zst", ".zip")
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


def find_files(
    patterns: str | Sequence[str], *, field: str, repeated: dict[str, str] | None = None
) -> list[str]:
    """Returns the files that match any of the patterns, sorted by pattern and name, each once.

    A file is one file under all its names: `a.csv`, `./a.csv`, links to it.

    Args:
      patterns: paths, or patterns with `*`, `?`, `[…]` and `**` for any folders; or names of
        TensorFlow Datasets, see `tfds_file`.
      field: the parameter to name in errors.
      repeated: is filled with the omitted names, each with the name that it repeats.

    Raises:
      InputError: if a pattern matches no file, with the nearest names.
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

        return [tfds_file(path)]
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
        problem = f"there is no folder {folder!r}"
    else:
        problem = str(unknown("file", name, os.listdir(folder or ".")))
    raise InputError(f"{field} = {path!r}: {problem}", field=field)


def format_of(path: str, format: str | None) -> str:
    """Returns the `format`, or where that is None the one of the file's ending.

    Raises:
      InputError: if the format or the ending is unknown.
    """
    if format is not None:
        if format not in FORMATS:
            raise unknown("format", format, FORMATS, field="format")
        return format
    stem, ending = os.path.splitext(path)
    ending = Path(stem if ending in (*COMPRESSED, *UNSUPPORTED) else path).suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(
            f"{path}: the ending {ending!r} says no format; set FileData.format to one of "
            f"{', '.join(FORMATS)}",
            field="FileData.format",
        )
    return _ENDINGS[ending]


def status_of(path: str) -> tuple[int, int]:
    """Returns a file's size and its modification time in nanoseconds, to detect changes.

    Raises:
      InputError: if it cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; restore it") from error
    return status.st_size, status.st_mtime_ns
