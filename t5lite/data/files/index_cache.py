"""The index of a run's files, kept in the cache: a second start scans none of them.

An entry is two files in `index/` of the cache: `KEY.json`, and the rows as an array that is
memory-mapped. The key stands for the files' names and for how they are read; their sizes and times
of change (mtime and ctime) are inside, so that the entry of files that have changed is replaced.
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

from t5lite.data.files.index import Index
from t5lite.data.files.readers import DataFile, Facts, status_of
from t5lite.data.paths import cache_folder, locked, whole_file

# Raise it when other lines become rows, or rows get other hashes.
_FORMAT = 1
# Seconds: a file that is younger may change again without a new time of change.
_SETTLED = 2.0
_PLAIN = ("num_train", "classes", "num_lines", "num_broken", "first_broken", "num_shared")


def cached_index(
    files: Sequence[dict[str, Any]], recipe: str | None, scan: Callable[[Sequence[DataFile]], Index]
) -> Index:
    """Returns the index of some files: what was kept of an earlier start, else what `scan` finds.

    Of several processes that share the cache one scans, and the others wait for it. Without a cache
    that can be written, every start scans.

    Args:
      files: the arguments of `DataFile`, for each.
      recipe: what else decides the index; None if that is unknown: then nothing is kept.
      scan: reads the files.
    """
    # A file that takes another's place may have its size and its time of change, but not its ctime.
    status = [(*status_of(file["path"]), os.stat(file["path"]).st_ctime_ns) for file in files]
    settled = all(mtime / 1e9 < time.time() - _SETTLED for _, mtime, _ in status)
    if recipe is None or not settled:
        return scan([DataFile(**file) for file in files])
    named = [{**file, "absolute": os.path.abspath(file["path"])} for file in files]
    entry = cache_folder() / "index" / f"{_digest([_FORMAT, recipe, named])}.json"
    if found := _load(entry, files, status):
        return found
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a disk without locks, or that cannot be written
            stack.enter_context(locked(entry.with_suffix(".lock")))
        if found := _load(entry, files, status):  # by the process that was waited for
            return found
        index = scan([DataFile(**file) for file in files])
        with contextlib.suppress(OSError):
            _save(entry, index, status)
        return index


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _save(entry: Path, index: Index, status: Sequence[tuple[int, int, int]]) -> None:
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


def _load(
    entry: Path, files: Sequence[dict[str, Any]], status: Sequence[tuple[int, int, int]]
) -> Index | None:
    """Returns what an entry holds; None if there is none, or it is of files that have changed."""
    try:
        content = json.loads(entry.read_bytes())
        if content["status"] != [list(each) for each in status]:
            return None
        rows = np.load(entry.with_name(content["array"]), mmap_mode="r", allow_pickle=False)
        facts = [Facts(tuple(columns), *rest) for columns, *rest in content["files"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError):  # none, or a damaged one
        return None
    if not all(os.path.exists(each.lines) for each in facts):  # unpacked ones may be gone
        return None
    opened = [DataFile(**file, facts=each) for file, each in zip(files, facts, strict=True)]
    return Index(opened, rows, **{name: content[name] for name in _PLAIN})
