"""Files of a packed cache: memory-mapped rows, and a description of their origin.

DIR/packed.json            the description, written last
DIR/vocabulary/            for `load_vocabulary`, if there is one
DIR/use.gin                trains on the cache, after the configuration that made it
DIR/train-0/NAME.npy       [rows, ...], integers in the smallest type that holds the values;
                           one folder for each cached pass, and `validation-0`
"""

import collections
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.paths import as_path, read_json
from t5lite.data.validation import num_rows
from t5lite.errors import InputError

FORMAT = 2
DESCRIPTION = "packed.json"
_KEYS = {
    "objective",
    "vocabulary",
    "lengths",
    "rows",
    "pack",
    "described",
    "classes",
    "passes",
    "sha256",
}
Rows = Mapping[str, np.ndarray]
_CHUNK = 1 << 22  # values that are narrowed at a time


class RowWriter:
    """Appends rows to the files of one pass, in a new folder, and to a hash."""

    def __init__(self, folder: Path, digest: Any):
        folder.mkdir(parents=True)
        self._folder, self._digest = folder, digest
        self._files: dict[str, Any] = {}
        self._types: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        self._bounds: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
        self.num_rows = 0

    def append(self, rows: Rows) -> None:
        """Writes `[n, ...]` rows, of the same names, shapes and types each time."""
        for name, values in rows.items():
            if name not in self._files:
                self._files[name] = open(self._folder / f"{name}.part", "wb")  # noqa: SIM115
                self._types[name] = (values.shape[1:], values.dtype)
            content = np.ascontiguousarray(values).tobytes()
            try:
                self._files[name].write(content)
            except OSError as error:
                raise _cannot_write(self._folder, error) from error
            self._digest.update(content)
            if values.dtype.kind == "i" and values.size:
                low, high = self._bounds[name]
                self._bounds[name] = (min(low, int(values.min())), max(high, int(values.max())))
        self.num_rows += num_rows(rows)

    def close(self) -> None:
        """Converts the files to arrays of the smallest type."""
        for name, file in self._files.items():
            file.close()
            (shape, dtype), (low, high) = self._types[name], self._bounds[name]
            small = dtype if dtype.kind != "i" or low < 0 else np.min_scalar_type(high)
            wide = np.memmap(self._folder / f"{name}.part", dtype, "r").reshape(-1)
            narrow = np.lib.format.open_memmap(
                self._folder / f"{name}.npy", "w+", small, (self.num_rows, *shape)
            )
            flat = narrow.reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                flat[start : start + _CHUNK] = wide[start : start + _CHUNK]
            narrow.flush()
            os.unlink(self._folder / f"{name}.part")


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` if no error is raised.

    Raises: InputError if `folder` is remote, exists and is not empty, or cannot be written.
    """
    target = local_folder(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"output = {str(folder)!r}: exists; delete it first, or choose another folder",
            field="output",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out others who share the folder
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield temporary
        try:
            os.replace(temporary, target)  # which may exist if it is empty
        except OSError as error:
            raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def local_folder(folder: str | os.PathLike) -> Path:
    """Returns the path of a folder whose files can be memory-mapped; InputError if remote."""
    path = as_path(folder)
    if not isinstance(path, Path):
        raise InputError(
            f"folder = {str(folder)!r}: a packed cache is memory-mapped and must be on a local "
            "disk; copy it there",
            field="folder",
        )
    return path.absolute()


def read_description(folder: Path) -> dict[str, Any]:
    """Returns a cache's description; InputError if missing, damaged or of another format."""
    path, fix = folder / DESCRIPTION, "write the cache again"
    if not path.exists():
        raise InputError(
            f"folder = {str(folder)!r}: holds no packed cache ({path.name} is missing); write one "
            "with t5lite cache",
            field="folder",
        )
    description = read_json(path, dict, version=FORMAT, key="format", fix=fix)
    if isinstance(objective := description.get("objective"), dict):  # older ones list None as well
        description["objective"] = {k: v for k, v in objective.items() if v is not None}
    if missing := sorted(_KEYS - description.keys()):
        raise InputError(f"{path} is damaged: it lacks {missing}; {fix}")
    return description


def open_rows(folder: Path, columns: Mapping[str, Any], num_rows: int) -> dict[str, np.ndarray]:
    """Returns the memory-mapped columns of one pass; raises InputError if a file differs.

    Args:
      folder: of the pass.
      columns, num_rows: of the description; columns are `[shape of a row, dtype]` by name.
    """
    rows = {}
    for name, (shape, _) in columns.items():
        path = folder / f"{name}.npy"
        try:
            # A plain view: indexing numpy.memmap makes a memmap each time, which is slow.
            rows[name] = np.load(path, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged: {error}; write the cache again") from error
        if rows[name].shape != (num_rows, *shape):
            raise InputError(
                f"{path} is damaged: it has shape {rows[name].shape}, described as "
                f"{(num_rows, *shape)}; write the cache again"
            )
    return rows


def widened(rows: Rows, numbers: Any, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns rows by number, in the types of the objective's rows."""
    return {name: values[numbers].astype(columns[name][1]) for name, values in rows.items()}


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; choose another folder")
