"""Paths, local or remote; files written whole; the cache folder."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from t5lite.errors import InputError
from t5lite.paths import as_path

T = TypeVar("T")


def cache_folder() -> Path:
    """Returns $T5LITE_CACHE, $XDG_CACHE_HOME/t5lite or ~/.cache/t5lite; it may not exist."""
    if own := os.environ.get("T5LITE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "t5lite"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, after waiting for other processes that hold it.

    Raises: OSError if the file cannot be written, or locks are unknown where it lies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a local file that replaces `path` when all of it is written, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock out others who share the folder
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file, and missing folders; raises InputError if that fails."""
    target = as_path(path)
    try:
        if not isinstance(target, Path):  # object stores show a file only once it is complete
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            return
        with whole_file(target) as file:
            file.write(content)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}\n"
            "choose another folder (for the cache: set T5LITE_CACHE)"
        ) from error


def write_changed(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file unless it has this content: other processes may be reading it."""
    target = as_path(path)
    if not (target.exists() and target.read_bytes() == content):
        write_whole(target, content)


def write_json(path: str | os.PathLike, content: dict[str, Any], *, version: int) -> None:
    """Writes an object and its `format_version`, see `read_json`, unless they are there already."""
    text = json.dumps({"format_version": version} | content, indent=2, ensure_ascii=False)
    write_changed(path, f"{text}\n".encode())


def read_json(
    path: Any,
    parse: Callable[[dict[str, Any]], T],
    *,
    version: int,
    key: str = "format_version",
    fix: str = "restore it from a backup",
) -> T:
    """Returns `parse` of the object in a JSON file, without its version, which is under `key`.

    Raises: InputError with `fix`, if the file is unreadable, damaged, or of another version.
    """
    try:
        content = json.loads(read_file(path, "file"))
        actual = content.pop(key)
        if actual == version:
            return parse(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; {fix}") from error
    raise InputError(
        f"{path}: {key} {actual}; this t5lite reads {version}: use the t5lite that wrote it"
    )


def check_folder(path: object, *, field: str) -> None:
    """Refuses a path that cannot be the folder of a run, a model or a cache.

    Raises: InputError if it is not a path, is blank, a file or the root of a file system, or a URL
    of an unknown scheme.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{field} = {path!r}: must be the path of a folder, such as 'runs/first'", field=field
        )
    text = os.fspath(path)
    wrong = None
    if text.strip() != text or not text:
        wrong = "is empty" if not text.strip() else "begins or ends with a space"
    elif "://" in text:
        wrong = None if text.partition("://")[2].strip("/") else "names no bucket"
        try:
            as_path(text)
        except InputError as error:
            raise InputError(f"{field} = {text!r}: {error}", field=field) from error
    elif not (target := Path(os.path.abspath(os.path.expanduser(text)))).name:
        wrong = "is the root of the file system"
    elif target.exists() and not target.is_dir():
        wrong = "cannot be written: it is a file"
    if wrong:
        raise InputError(
            f"{field} = {text!r} {wrong}; name a folder, such as 'runs/first'", field=field
        )


def require_writable(path: str | os.PathLike) -> None:
    """Refuses, before the work, a result's file that is a folder, below a file or not writable."""
    target = as_path(path)
    if not isinstance(target, Path):  # an object store says so when it is written to
        return
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder")
    parents = (target, *target.absolute().parents)
    existing = next(path for path in parents if path.exists())
    if existing != target and not existing.is_dir():
        raise InputError(f"cannot write {target}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"cannot write {target}: no write permission for {existing}")


def decode_text(raw: bytes, *, where: str) -> str:
    """Returns UTF-8 bytes as text.

    Raises: InputError naming `where`, a file or task, and the offset of the first bad byte.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            "convert it, e.g. with `iconv -t UTF-8`"
        ) from error


def read_file(path: Any, noun: str) -> bytes:
    """Returns a file's bytes; raises an InputError that names it as the `noun`."""
    try:
        return path.read_bytes()
    except Exception as error:  # remote file systems raise their own kinds
        raise InputError(f"cannot read the {noun} {path}: {error}") from error
