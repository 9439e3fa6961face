"""Writes checkpoints in the layout that T5X releases."""

import shutil
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from t5lite.errors import InputError
from t5lite.interop.t5x.files import kvstore
from t5lite.training import CheckpointError
from t5lite.training.restore import absolute, reason

_VERSION = 3  # of T5X's format, since June 2021: bfloat16 as itself
_MAX_CHUNK_BYTES = 64 << 20


def write_checkpoint(
    folder: epath.PathLike, arrays: Iterable[tuple[str, np.ndarray, bool]], *, step: int
) -> epath.Path:
    """Writes `checkpoint_N`, whole or not at all.

    Args:
      folder: in which it is made.
      arrays: name, values and whether it gets a folder of its own; taken one at a time.
      step: N.

    Returns:
      The folder `checkpoint_N`.

    Raises:
      InputError: if it exists already.
      CheckpointError: if it cannot be written.
    """
    final = absolute(folder) / f"checkpoint_{step}"
    if final.exists():
        raise InputError(f"{final} exists; give another folder or step, or remove it")
    draft = final.with_name(f"{final.name}.tmp-{int(time.time())}")
    try:
        draft.mkdir(parents=True)
        tree: dict[str, Any] = {}
        for name, values, own_folder in arrays:
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = _write(draft, name, values) if own_folder else values
        # Last of all, as T5X knows a checkpoint by it.
        content = serialization.msgpack_serialize({"version": _VERSION, "optimizer": tree})
        (draft / "checkpoint").write_bytes(content)
        draft.rename(final)
    except (OSError, ValueError) as error:
        _remove(draft)
        if isinstance(error, InputError):
            raise
        raise CheckpointError(f"the checkpoint {final} was not written: {reason(error)}") from error
    except BaseException:
        _remove(draft)
        raise
    return final


def _write(folder: epath.Path, name: str, values: np.ndarray) -> dict[str, Any]:
    """Writes an array into a folder, and returns what the file `checkpoint` says of it."""
    described: dict[str, Any] = {
        "driver": "zarr",
        "dtype": values.dtype.name,
        "metadata": {
            "shape": list(values.shape),
            "chunks": _chunks(values.shape, _MAX_CHUNK_BYTES // values.dtype.itemsize),
            "compressor": {"id": "gzip", "level": 1},
        },
    }
    # Zeros too, so that a missing file always means an incomplete copy.
    spec = {**described, "kvstore": kvstore(folder, name), "store_data_equal_to_fill_value": True}
    ts.open(spec, create=True, open=True).result().write(values).result()
    return {**described, "kvstore": {"driver": "file", "path": name}}


def _chunks(shape: tuple[int, ...], most: int) -> list[int]:
    """Returns the sizes of equal chunks of at most `most` entries, cutting the longest axes."""
    counts = [1] * len(shape)
    sizes = list(shape)
    while np.prod(sizes, dtype=np.int64) > most:
        axis = int(np.argmax(sizes))
        counts[axis] += 1
        while shape[axis] % counts[axis]:
            counts[axis] += 1
        sizes[axis] = shape[axis] // counts[axis]
    return sizes


def _remove(draft: epath.Path) -> None:
    if "://" in str(draft):
        draft.rmtree(missing_ok=True)
    else:
        shutil.rmtree(draft, ignore_errors=True)
