"""The tensors in a Hugging Face folder: `model.safetensors`, or several files and an index."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from t5lite.data.paths import as_path, whole_file
from t5lite.errors import InputError
from t5lite.interop.huggingface.file_format import Entry, header_of, num_bytes, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FOREIGN = (".h5", ".msgpack")
Written = tuple[str, jax.ShapeDtypeStruct, Callable[[], np.ndarray]]


class Safetensors:
    """A `tensors.Source` of one or several files."""

    def __init__(self, entries: Mapping[str, Entry]):
        self._entries = dict(entries)
        self._mapped: dict[Path, np.memmap] = {}
        self._fetched: tuple[str, bytes] = ("", b"")  # the last one, which may have several parts

    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(entry.shape, entry.dtype)
            for name, entry in self._entries.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor: a read-only view of its file, or bytes fetched from a remote one."""
        entry = self._entries[name]
        if not isinstance(entry.path, Path):
            if self._fetched[0] != name:
                self._fetched = name, _fetch(entry)
            return np.frombuffer(self._fetched[1], np.uint8).view(entry.dtype).reshape(entry.shape)
        if entry.path not in self._mapped:
            self._mapped[entry.path] = np.memmap(entry.path, np.uint8, "r")
        raw = self._mapped[entry.path][entry.start : entry.stop]
        return raw.view(entry.dtype).reshape(entry.shape)


def open_tensors(folder: str | os.PathLike) -> Safetensors:
    """Opens the weights of a Hugging Face folder, reading nothing but headers.

    Args:
      folder: local or remote, with `model.safetensors`, or `model.safetensors.index.json` and the
        files it names; or one `.safetensors` file, or an index, of any name.

    Raises: InputError for missing files (pickles are not opened), truncated or damaged ones, or an
      index of other files.
    """
    path = as_path(folder)
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS, INDEX) if (path / name).exists()]
        if not candidates:
            raise _no_weights(path)
        path = candidates[0]
    elif not path.exists():
        raise InputError(f"{str(folder)!r} does not exist")
    if path.name.endswith(".json"):
        return Safetensors(_indexed(path))
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a .safetensors file; {_ADVICE}")
    return Safetensors(read_header(path))


def write_tensors(
    folder: str | os.PathLike,
    tensors: Iterable[Written],
    *,
    max_file_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Writes tensors as transformers' `save_pretrained` would, one at a time.

    An older checkpoint in the folder stays as it is until all of the new one is written.

    Args:
      folder: local; created if it does not exist.
      tensors: name, shape and dtype, and the function that makes it, called when it is due.
      max_file_bytes: of tensors in a file; a larger one is alone in its file.
      progress: called with bytes written and bytes in all after each tensor.

    Returns: the files, the index last if there is one.
    """
    root = local(folder)
    due = list(tensors)
    if len({name for name, *_ in due}) < len(due):
        raise RuntimeError("internal error: two tensors to be written have the same name")
    files = _split(due, max_file_bytes)
    headers = {
        name: header_of((key, tensor) for key, tensor, _ in content)
        for name, content in files.items()
    }
    total, num_written = sum(num_bytes(tensor) for _, tensor, _ in due), 0
    try:
        # Renamed at the end, last to first: the index once its files exist.
        with contextlib.ExitStack() as stack:
            if len(files) > 1:
                stack.enter_context(whole_file(root / INDEX)).write(_index(files, total_size=total))
            opened = {name: stack.enter_context(whole_file(root / name)) for name in files}
            for name, content in files.items():
                opened[name].write(headers[name])
                for due_tensor in content:
                    num_written += _write(opened[name], *due_tensor)
                    if progress is not None:
                        progress(num_written, total)
        names = [*files, *([INDEX] if len(files) > 1 else [])]
        _remove_older(root, keep=names)
    except OSError as error:
        raise InputError(
            f"cannot write {total:,} bytes to {root}: {error.strerror or error}; "
            "choose another folder"
        ) from error
    return [root / name for name in names]


def local(folder: str | os.PathLike) -> Path:
    """Returns the path of a local folder or file; InputError for `gs://` and the like."""
    path = as_path(folder)
    if not isinstance(path, Path):
        raise InputError(
            f"{str(folder)!r} is remote, and safetensors files are written to a local disk: give a "
            "local folder, and copy it from there"
        )
    return path


_ADVICE = (
    "only safetensors files are opened: unpickling runs whatever code is in the file. Convert it "
    "where transformers and the file's own library are installed: "
    "model = AutoModel….from_pretrained(OLD); model.save_pretrained(NEW); "
    "AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)"
)


def _fetch(entry: Entry) -> bytes:
    """Reads the bytes of a tensor of a remote file."""
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            content = file.read(entry.stop - entry.start)
    except Exception as error:  # each kind of storage raises its own errors
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"cannot read {entry.path}: {reason.splitlines()[0][:150]}; try again, or copy the "
            "folder to a local disk"
        ) from error
    if len(content) != entry.stop - entry.start:
        raise InputError(f"{entry.path} ended early; try again, or copy it to a local disk")
    return content


def _no_weights(folder: Any) -> InputError:
    names = sorted(path.name for path in folder.iterdir())
    files = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    message = f"{folder} has neither {WEIGHTS} nor {INDEX}; there is: {files or 'nothing'}"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return InputError(f"{message}\n{pickles[0]} is a pickle, and {_ADVICE}")
    if foreign := [name for name in names if name.endswith(_FOREIGN)]:
        return InputError(f"{message}\n{foreign[0]} cannot be read: {_ADVICE}")
    if direct := [name for name in names if name.endswith(".safetensors")]:
        # `load` takes a folder: a file alone lacks the config.
        return InputError(f"{message}\nif {direct[0]} is the model's, rename it to {WEIGHTS}")
    return InputError(message)


def _indexed(path: Any) -> dict[str, Entry]:
    """Returns the tensors' locations in all files of an index."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
        if not all(isinstance(name, str) and name == Path(name).name for name in files):
            raise ValueError("it names files outside its folder")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: {str(error)[:80]}; copy or download it again"
        ) from error
    if missing := [name for name in files if not (path.parent / name).exists()]:
        raise InputError(
            f"{path} names {_listed(missing)}, which the folder lacks; copy or download "
            f"{'it' if len(missing) == 1 else 'them'}"
        )
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(path.parent / file).items():
            if name in entries:
                raise InputError(
                    f"{path.parent}: {name!r} is both in {entries[name].path.name} and in {file}: "
                    "files of two checkpoints? copy or download the folder again"
                )
            entries[name] = entry
    lost = [
        f"{name!r} in {file}"
        for name, file in places.items()
        if name not in entries or entries[name].path.name != file
    ]
    if lost:
        raise InputError(
            f"{path} says that there is {_listed(lost)}, and there is not: files of two "
            "checkpoints? copy or download the folder again"
        )
    return entries


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _split(tensors: Sequence[Written], max_file_bytes: int) -> dict[str, list[Written]]:
    files: list[list[Written]] = [[]]
    free_bytes = max_file_bytes
    for tensor in tensors:
        size = num_bytes(tensor[1])
        if files[-1] and size > free_bytes:
            files.append([])
            free_bytes = max_file_bytes
        files[-1].append(tensor)
        free_bytes -= size
    for content in files:  # wide types first, so that each begins at a multiple of its width
        content.sort(key=lambda tensor: -np.dtype(tensor[1].dtype).itemsize)
    if len(files) == 1:
        return {WEIGHTS: files[0]}
    count = len(files)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": content
        for number, content in enumerate(files, start=1)
    }


def _write(
    file: BinaryIO, name: str, tensor: jax.ShapeDtypeStruct, make: Callable[[], np.ndarray]
) -> int:
    """Makes and writes a tensor; returns its bytes."""
    array = make()
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise RuntimeError(
            f"internal error: {name} came as {array.dtype}{list(array.shape)}, announced as "
            f"{np.dtype(tensor.dtype)}{list(tensor.shape)}"
        )
    # As bytes, for bfloat16 has no buffer protocol; `tobytes` would copy all of it.
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[call-overload]
    return array.nbytes


def _index(files: Mapping[str, Sequence[Written]], *, total_size: int) -> bytes:
    places = {name: file for file, content in files.items() for name, *_ in content}
    index: dict[str, Any] = {"metadata": {"total_size": total_size}, "weight_map": places}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _remove_older(folder: Path, *, keep: Sequence[str]) -> None:
    """Removes the files of an older checkpoint, which could be opened instead."""
    for path in folder.iterdir():
        if path.name not in keep and (path.name in (WEIGHTS, INDEX) or _PART.fullmatch(path.name)):
            path.unlink()
