"""One safetensors file: a header with the tensors' locations, and their bytes.

The file is the header's length (8 bytes, little-endian), the header (JSON: name → dtype, shape and
`data_offsets`, which count from the header's end), and the tensors' bytes, row by row, without
gaps. Its own library cannot map a checkpoint larger than the host's memory, or write one while
it is being made.

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from t5lite.errors import InputError

DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_CODES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # as in the format's own library
_MOST_AXES = 32
_METADATA = "__metadata__"


class Entry(NamedTuple):
    """A tensor's location: a local or remote file, and the byte of the file at which it begins."""

    path: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Any) -> dict[str, Entry]:
    """Returns the location of each tensor in a file, local or remote, in the header's order.

    Raises: InputError for a file that cannot be opened, is truncated or damaged, or has an unknown
      dtype. Only the header is read, and no more of it than the file has.
    """
    try:
        stat = path.stat()
        size = stat.st_size if isinstance(path, Path) else stat.length
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if first == b"version ":
                raise InputError(
                    f"{path} is a git-lfs pointer, not the weights; fetch them: git lfs pull"
                )
            if size < 8:
                raise _truncated(path, size, 8)
            if length > _MOST_HEADER_BYTES:
                raise _damaged(path, f"a header of {length:,} bytes; is it a safetensors file?")
            if 8 + length > size:
                raise _truncated(path, size, 8 + length)
            header = _parse(path, file.read(length))
    except InputError:
        raise
    except Exception as error:
        if isinstance(path, Path) and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or error  # remote storage raises its own errors
        raise InputError(f"cannot read {path}: {reason}") from error
    header.pop(_METADATA, None)
    entries = {name: _entry(path, name, fields, 8 + length) for name, fields in header.items()}
    _check_layout(path, entries, begin=8 + length, size=size)
    return entries


def header_of(tensors: Iterable[tuple[str, jax.ShapeDtypeStruct]]) -> bytes:
    """Returns the bytes of a file before its tensors'.

    Args:
      tensors: name, shape and dtype, in the order in which the bytes follow.

    Raises: InputError for a dtype that the format lacks, or too long a header.
    """
    # Tensors are laid out as PyTorch's are; otherwise transformers refuses them.
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offset = 0
    for name, tensor in tensors:
        dtype = np.dtype(tensor.dtype)
        if dtype not in _CODES:
            raise InputError(f"{name} is {dtype}, which safetensors files cannot hold")
        stop = offset + num_bytes(tensor)
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors can be mapped where they lie
    if len(encoded) > _MOST_HEADER_BYTES:
        raise InputError(f"{len(header):,} tensors are too many for one safetensors file")
    return len(encoded).to_bytes(8, "little") + encoded


def num_bytes(tensor: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of a tensor in a file."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _parse(path: Any, encoded: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(names := dict(pairs)) < len(pairs):
            raise ValueError(f"{_repeated(name for name, _ in pairs)!r} stands in it twice")
        return names

    try:
        header = json.loads(encoded.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({str(error)[:80]})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    return header


def _entry(path: Any, name: str, fields: Any, begin: int) -> Entry:
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise _damaged(path, f"its header lacks dtype, shape or offsets of {name!r}")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(
            f"{path}: {name!r} has dtype {str(code)[:40]!r}; known: {', '.join(DTYPES)}"
        )
    if not (_whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2):
        raise _damaged(
            path, f"its header has shape or offsets of {name!r} that are not whole numbers"
        )
    # The limit that NumPy has on sizes holds without the axes of size 0 as well.
    if len(shape) > _MOST_AXES or math.prod(size or 1 for size in shape) >= 2**58:
        raise _damaged(path, f"{name!r} has a shape beyond all bounds")
    entry = Entry(path, tuple(shape), DTYPES[code], begin + offsets[0])
    if entry.stop != begin + offsets[1]:
        raise _damaged(
            path,
            f"{name!r} is {code} {shape}, which takes {entry.stop - entry.start:,} bytes, but lies "
            f"at {offsets[0]:,} to {offsets[1]:,}",
        )
    return entry


def _check_layout(path: Any, entries: Mapping[str, Entry], *, begin: int, size: int) -> None:
    """Raises unless the tensors fill the file without gaps."""
    end = begin
    expected = max((entry.stop for entry in entries.values()), default=begin)
    if expected > size:
        raise _truncated(path, size, expected)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            reason = "overlaps the one before it" if entry.start < end else "follows a gap"
            raise _damaged(path, f"{name!r} {reason}")
        end = entry.stop
    if end != size:
        raise _damaged(path, f"{size - end:,} bytes at its end belong to no tensor")


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _truncated(path: Any, size: int, expected: int) -> InputError:
    return InputError(
        f"{path} is truncated: it has {size:,} bytes of at least {expected:,}; "
        "copy or download it again"
    )


def _damaged(path: Any, why: str) -> InputError:
    return InputError(f"{path} is damaged: {why}; copy or download it again")
