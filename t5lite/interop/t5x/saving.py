"""Writes checkpoints in the layout that T5X releases."""

import shutil
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from t5lite.errors import InputError, require_integer
from t5lite.interop.t5x.adafactor import stored_moments
from t5lite.interop.t5x.architecture import form_of
from t5lite.interop.t5x.files import kvstore
from t5lite.interop.t5x.names import tensors
from t5lite.interop.tensors import tensors_from
from t5lite.models import ModelSpec
from t5lite.optimizers import AdafactorState
from t5lite.training import CheckpointError
from t5lite.training.restore import absolute, reason

_VERSION = 3  # of T5X's format, since June 2021: bfloat16 as itself
_MAX_CHUNK_BYTES = 64 << 20


def save(
    folder: epath.PathLike,
    spec: ModelSpec,
    params: Any,
    *,
    step: int = 0,
    scanned: bool = False,
    joined: bool | None = None,
    adafactor: AdafactorState | None = None,
) -> epath.Path:
    """Writes `checkpoint_N`, whole or not at all, and returns its folder.

    T5X must be configured to the same activation, dropout and relative buckets, which its
    checkpoints do not store.

    Args:
      folder: in which `checkpoint_N` is created, with missing parents.
      params: the model's parameters; their dtypes stay.
      step: N, updates done.
      scanned, joined: see `form_of`.
      adafactor: the optimizer's state; None: decoding, evaluation and fine-tuning only.

    Raises:
      InputError: a model that T5X lacks (with the reason), parameters sharded over several
        processes, or an existing `checkpoint_N`.
      CheckpointError: a failed write.
    """
    require_integer("step", step, least=0)
    form = form_of(scanned, joined)
    target = tensors(spec, scanned=form.scanned, joined=form.joined)
    if adafactor is not None and int(adafactor.count) != step:
        raise InputError(
            f"step = {step}, but the state of Adafactor has done {int(adafactor.count)} updates: "
            "T5X has one number for both",
            field="step",
        )
    parameters = tensors_from(params, target)

    def arrays() -> Iterator[tuple[str, np.ndarray, bool]]:
        for name, _, make in parameters:
            yield name, make(), True
        yield "state.step", np.asarray(step, np.int32), False
        if adafactor is not None:
            yield from stored_moments(spec, adafactor, form=form)

    final = absolute(folder) / f"checkpoint_{step}"
    if final.exists():
        raise InputError(f"{final} exists; give another folder or step, or remove it")
    draft = final.with_name(f"{final.name}.tmp-{int(time.time())}")
    try:
        draft.mkdir(parents=True)
        _write(draft, arrays())
        draft.rename(final)
    except BaseException as error:
        _remove(draft)
        if isinstance(error, InputError) or not isinstance(error, OSError | ValueError):
            raise
        raise CheckpointError(f"the checkpoint {final} was not written: {reason(error)}") from error
    return final


def _write(folder: epath.Path, arrays: Iterable[tuple[str, np.ndarray, bool]]) -> None:
    """Writes arrays one at a time: name, values, and whether it has a folder."""
    tree: dict[str, Any] = {}
    for name, values, in_folder in arrays:
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _write_array(folder, name, values) if in_folder else values
    # Last of all, as T5X knows a checkpoint by it.
    content = serialization.msgpack_serialize({"version": _VERSION, "optimizer": tree})
    (folder / "checkpoint").write_bytes(content)


def _write_array(folder: epath.Path, name: str, values: np.ndarray) -> dict[str, Any]:
    """Writes an array into a folder, and returns its entry in the file `checkpoint`."""
    entry: dict[str, Any] = {
        "driver": "zarr",
        "dtype": values.dtype.name,
        "metadata": {
            "shape": list(values.shape),
            "chunks": _chunks(values.shape, _MAX_CHUNK_BYTES // values.dtype.itemsize),
            "compressor": {"id": "gzip", "level": 1},
        },
    }
    # Zeros too, so that a missing file always means an incomplete copy.
    spec = {**entry, "kvstore": kvstore(folder, name), "store_data_equal_to_fill_value": True}
    ts.open(spec, create=True, open=True).result().write(values).result()
    return {**entry, "kvstore": {"driver": "file", "path": name}}


def _chunks(shape: tuple[int, ...], most: int) -> list[int]:
    """Returns the sizes of equal chunks of at most `most` entries, cutting the longest axes."""
    counts, sizes = [1] * len(shape), list(shape)
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
