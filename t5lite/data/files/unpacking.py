"""Compressed files, JSON arrays and Parquet, unpacked once into files of lines in the cache."""

import hashlib
import json
import lzma
import math
import os
import shutil
import zlib
from collections.abc import Callable
from typing import Any

from t5lite.data.files.finding import COMPRESSED, UNSUPPORTED
from t5lite.data.paths import cache_folder, whole_file
from t5lite.errors import InputError

BOM = b"\xef\xbb\xbf"
_CONSTANTS = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; NaN, which some programs write for missing, is None."""
    return json.loads(text, parse_constant=_CONSTANTS.__getitem__)


def unpacked(path: str, format: str) -> str:
    """Returns the path of a file of lines: the file itself, or its content in the cache.

    Raises:
      InputError: if the file is damaged, its compression is not supported, or the cache is full.
    """
    ending = os.path.splitext(path)[1]
    if ending in UNSUPPORTED:
        raise InputError(
            f"{path}: {ending} is not supported; decompress it, or use {', '.join(COMPRESSED)}"
        )
    if ending in COMPRESSED:
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
    with COMPRESSED[os.path.splitext(path)[1]](path, "rb") as source:
        shutil.copyfileobj(source, target, 2**20)


def _starts_array(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
        while block := file.read(4096):
            if start := block.lstrip():
                return start.startswith(b"[")
    return False


def _json_array(path: str, target: Any) -> None:
    """Writes the items of a JSON array as JSON lines."""
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
