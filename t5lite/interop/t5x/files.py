"""T5X checkpoints as files: their arrays by name, listed without being read."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from t5lite.errors import InputError
from t5lite.training import CheckpointError
from t5lite.training.restore import absolute, reason

_BFLOAT16 = np.dtype(jnp.bfloat16)
_IN_A_FOLDER = re.compile(r"(?:PLACEHOLDER|AGGREGATED)://(.*)")  # Orbax's entries in its msgpack


class Stored(NamedTuple):
    """An array in a folder, or in Orbax's database; `spec` opens it in TensorStore."""

    spec: dict[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype


class T5XSource:
    """An opened T5X checkpoint; names are as T5X joins them, `target.encoder.….kernel`."""

    def __init__(
        self, folder: epath.Path, leaves: Mapping[str, np.ndarray | Stored], *, step: int
    ) -> None:
        self.folder, self.step, self._leaves = folder, step, leaves

    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in self._leaves.items()
        }

    def part(self, name: str) -> "T5XSource":
        """Returns one part of the checkpoint, under the same names: `target` or `state`."""
        leaves = {key: leaf for key, leaf in self._leaves.items() if key.startswith(f"{name}.")}
        return T5XSource(self.folder, leaves, step=self.step)

    def read(self, name: str) -> np.ndarray:
        """Reads one array; CheckpointError if it is damaged or incomplete."""
        leaf = self._leaves[name]
        if not isinstance(leaf, Stored):
            return leaf
        with _damage(self.folder, name):
            store = ts.open(leaf.spec, open=True, read=True).result()
            array = store.read().result()
        _check_chunks(leaf, store, name)
        if array.dtype == np.uint16 and leaf.dtype == _BFLOAT16:
            array = array.view(_BFLOAT16)
        if array.shape != leaf.shape:
            raise CheckpointError(
                f"the checkpoint {self.folder} is damaged: {name} has shape {array.shape}, "
                f"but {leaf.shape} in the list of arrays"
            )
        return array


def find_checkpoint(folder: epath.PathLike) -> epath.Path | None:
    """Returns the folder of a T5X checkpoint: itself or its last `checkpoint_N`; None if absent."""
    root = absolute(folder)
    if not root.is_dir():
        return None
    if _state_folder(root) is not None:
        return root
    steps = {}
    for path in root.iterdir():
        if match := re.fullmatch(r"checkpoint_(\d+)", path.name):
            steps[int(match[1])] = path
    return steps[max(steps)] if steps else None


def open_checkpoint(folder: epath.PathLike) -> T5XSource:
    """Opens a T5X checkpoint: the layout that T5X releases, or its Orbax output.

    The released one is a file `checkpoint`, msgpack, with small arrays in it and folders of zarr
    beside it; Orbax output has the same in a folder `state/`, the folders perhaps in a database.
    TensorStore's own driver reads `gs://`.

    Args:
      folder: `checkpoint_N`, or the folder that holds them, of which the last is opened.

    Raises:
      InputError: not a T5X checkpoint, or one without parameters.
      CheckpointError: damage, or missing folders.
    """
    root = find_checkpoint(folder) or absolute(folder)
    state = _state_folder(root)
    if state is None:
        raise InputError(f"{str(root)!r} is not a T5X checkpoint: {_contents(root)}")
    msgpack = (state / "checkpoint").exists()
    leaves = _from_msgpack(state) if msgpack else _from_orbax(state)
    if not any(name.startswith("target.") for name in leaves):
        parts = sorted({name.split(".")[0] for name in leaves})
        raise InputError(
            f"{str(root)!r} holds no T5X parameters: it lacks `target`, and has "
            f"{', '.join(parts) or 'nothing'}"
        )
    return T5XSource(root, leaves, step=_step(root, leaves))


def kvstore(folder: epath.Path, name: str) -> dict[str, Any]:
    """Returns TensorStore's description of a folder within a local or `gs://` one."""
    text = os.fspath(folder).rstrip("/")
    if text.startswith("gs://"):
        bucket, _, path = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/{name}/"}
    return {"driver": "file", "path": f"{text}/{name}/"}


def _state_folder(root: epath.Path) -> epath.Path | None:
    """Returns the folder of the file `checkpoint`, or of Orbax's `_METADATA`; None if absent."""
    if (root / "checkpoint").exists():
        return root
    for folder in (root / "state", root):
        if any((folder / name).exists() for name in ("_METADATA", "checkpoint")):
            return folder
    return None


def _contents(path: epath.Path) -> str:
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file; give the folder"
    names = sorted(child.name for child in path.iterdir())
    if names and all(re.fullmatch(r"checkpoint_\d+\..*tmp.*", name) for name in names):
        return f"{names[-1]} was never finished"
    listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        "that has a file `checkpoint`, or Orbax's folder `state`, or folders checkpoint_N with "
        f"these; here is {listed or 'nothing'}"
    )


def _step(root: epath.Path, leaves: Mapping[str, Any]) -> int:
    saved = leaves.get("state.step")
    if isinstance(saved, Stored):
        saved = T5XSource(root, {"state.step": saved}, step=0).read("state.step")
    if saved is not None:
        return int(np.max(saved))
    match = re.fullmatch(r"checkpoint_(\d+)", root.name)
    return int(match[1]) if match else 0


def _from_msgpack(folder: epath.Path) -> dict[str, np.ndarray | Stored]:
    """Lists the arrays that the file `checkpoint` names or holds."""
    content = (folder / "checkpoint").read_bytes()
    if content.startswith(b"model_checkpoint_path"):
        raise InputError(
            f"{str(folder)!r} holds a TensorFlow checkpoint of the old T5 library; T5X's script "
            "convert_tf_checkpoint makes one of T5X's of it"
        )
    with _damage(folder, "its file `checkpoint`"):
        tree = serialization.msgpack_restore(content)
        # Before versions were written there was no `optimizer` around it.
        values = dict(_flat(tree.get("optimizer", tree)))
    leaves: dict[str, np.ndarray | Stored] = {}
    unlisted: dict[str, dict[str, Any]] = {}  # arrays whose shape the file does not hold
    for name, value in values.items():
        if isinstance(value, dict):
            spec = {"driver": value["driver"], "kvstore": kvstore(folder, _last(value))}
            listed = _listed(value)
            if listed is None:
                unlisted[name] = spec
            else:
                leaves[name] = Stored(spec, *listed)
        elif isinstance(value, str):
            if match := _IN_A_FOLDER.fullmatch(value):
                unlisted[name] = _orbax_spec(folder, match[1], ocdbt=None, zarr3=False)
        else:
            leaves[name] = np.asarray(value)
    specs = {name: leaf.spec for name, leaf in leaves.items() if isinstance(leaf, Stored)}
    _check_folders(folder, specs | unlisted)
    return leaves | _opened(folder, unlisted)


def _from_orbax(folder: epath.Path) -> dict[str, np.ndarray | Stored]:
    """Lists the arrays that Orbax's file `_METADATA` names."""
    with _damage(folder, "its file `_METADATA`"):
        content = json.loads((folder / "_METADATA").read_text())
        names = [
            ".".join(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in content["tree_metadata"].values()
            if not leaf["value_metadata"].get("skip_deserialize")
            and leaf["value_metadata"].get("value_type") not in ("string", "None")
        ]
    ocdbt, zarr3 = content.get("use_ocdbt"), bool(content.get("use_zarr3"))
    specs = {name: _orbax_spec(folder, name, ocdbt=ocdbt, zarr3=zarr3) for name in names}
    return {**_opened(folder, specs)}


def _orbax_spec(
    folder: epath.Path, name: str, *, ocdbt: bool | None, zarr3: bool
) -> dict[str, Any]:
    if ocdbt is None:
        ocdbt = (folder / "manifest.ocdbt").exists()
    store = kvstore(folder, name)
    if ocdbt:
        base = kvstore(folder.parent, folder.name)
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields name and value of each leaf: an array, a number, or a dict for TensorStore."""
    if isinstance(tree, dict) and not tree.keys() >= {"driver", "kvstore"}:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    elif tree is not None:
        yield prefix, tree


def _last(spec: Mapping[str, Any]) -> str:
    """Returns the folder name of an array, without the path of its first writing."""
    path = spec["kvstore"].get("path") or spec.get("path") or ""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _listed(spec: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype] | None:
    """Returns shape and dtype in the file `checkpoint`; None if it lacks them."""
    metadata = spec.get("metadata", {})
    dtype = spec.get("dtype") or metadata.get("dtype")
    if dtype is None or "shape" not in metadata:
        return None
    # Before version 3 bfloat16 was written as the integers of the same bits.
    bits = dtype in ("uint16", "<u2", "bfloat16")
    return tuple(metadata["shape"]), _BFLOAT16 if bits else np.dtype(dtype)


def _check_folders(folder: epath.Path, specs: Mapping[str, dict[str, Any]]) -> None:
    """Raises unless every parameter has its folder; states may be missing."""
    stored = {child.name for child in folder.iterdir()}
    missing = [
        path
        for name, spec in specs.items()
        if name.startswith("target.") and spec["kvstore"]["driver"] != "ocdbt"
        if (path := _last(spec)) not in stored
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"the checkpoint {folder} lacks folders: {', '.join(missing[:3])}{more}; "
            "was all of it copied?"
        )


def _opened(folder: epath.Path, specs: Mapping[str, dict[str, Any]]) -> dict[str, Stored]:
    """Opens all arrays at once, for their shapes."""
    opening = {name: ts.open(spec, open=True, read=True) for name, spec in specs.items()}
    stored = {}
    for name, future in opening.items():
        with _damage(folder, name):
            store = future.result()
        dtype = np.dtype(store.dtype.numpy_dtype)
        dtype = _BFLOAT16 if dtype == np.uint16 else dtype
        stored[name] = Stored(specs[name], tuple(store.shape), dtype)
    return stored


@contextlib.contextmanager
def _damage(folder: epath.Path, name: str) -> Iterator[None]:
    """Re-raises errors as a CheckpointError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # msgpack and TensorStore raise anything, bare Exception included
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: {name}: {reason(error)}"
        ) from error


def _check_chunks(leaf: Stored, store: ts.TensorStore, name: str) -> None:
    """Raises if files of a parameter are missing, which zarr would take for zeros."""
    folder = leaf.spec["kvstore"]
    if (leaf.spec["driver"], folder["driver"], name[:7]) != ("zarr", "file", "target."):
        return
    chunks = store.chunk_layout.write_chunk.shape or ()
    expected = math.prod(
        -(-size // (chunk or size)) for size, chunk in zip(store.shape, chunks, strict=True)
    )
    files = [path for path in Path(folder["path"]).glob("*") if not path.name.startswith(".")]
    if all(path.is_file() for path in files) and len(files) < expected:
        raise CheckpointError(
            f"{folder['path']} has {len(files)} of {expected} files; was all of it copied?"
        )
