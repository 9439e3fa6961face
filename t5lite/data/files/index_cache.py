"""The index of a run's files in the cache, so that later starts scan none of them.

An entry is `index/KEY.json`, and the rows as an array that is memory-mapped. The key depends on the
files' names and on how they are read; their sizes and times (mtime and ctime) are inside, so that
the entry of changed files is replaced.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.files.finding import status_of
from t5lite.data.files.index import Index
from t5lite.data.files.readers import DataFile, Facts
from t5lite.data.paths import cache_folder, locked, whole_file

# Raise it when other lines become rows, or rows get other hashes.
_FORMAT = 1
# Seconds: a younger file may change again without a new modification time.
_SETTLED = 2.0
_PLAIN = ("num_train", "classes", "num_lines", "num_broken", "first_broken", "num_shared")

Status = Sequence[tuple[int, int, int]]


def cached_index(
    files: Sequence[dict[str, Any]], recipe: str | None, scan: Callable[[Sequence[DataFile]], Index]
) -> Index:
    """Returns the index of some files from the cache, or from `scan`.

    Of several processes that share the cache one scans, and the others wait for it. Without a
    writable cache every start scans.

    Args:
      files: the arguments of each `DataFile`.
      recipe: everything else that decides the index; None if it is unknown: nothing is cached.
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
        "files": [file.facts for file in index.files],
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
        facts = [Facts(tuple(columns), *rest) for columns, *rest in content["files"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if not all(os.path.exists(scanned.lines) for scanned in facts):  # unpacked ones may be gone
        return None
    opened = [DataFile(**file, facts=scanned) for file, scanned in zip(files, facts, strict=True)]
    return Index(opened, rows, **{name: content[name] for name in _PLAIN})
