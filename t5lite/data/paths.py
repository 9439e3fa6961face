"""Paths, local or remote, whole-file writes, and the folder of things that are built once."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from t5lite.errors import InputError
from t5lite.paths import as_path


def cache_folder() -> Path:
    """Returns $T5LITE_CACHE, else $XDG_CACHE_HOME/t5lite, else ~/.cache/t5lite; may not exist."""
    if own := os.environ.get("T5LITE_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "t5lite"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds a lock, and holds it; its end gives it back.

    Raises:
      OSError: if the file cannot be written, or locks are unknown where it lies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a local file that takes its place when all of it is written, or not at all.

    Raises:
      OSError: if it cannot be written.
    """
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
    """Writes a file so that no other process ever sees half of it.

    Args:
      path: where; missing folders are made.
      content: the whole file.

    Raises:
      InputError: if it cannot be written.
    """
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
    """Writes a whole file unless it has this content already; see `write_whole`.

    An unchanged file stays untouched: other processes may be reading it.
    """
    target = as_path(path)
    if not (target.exists() and target.read_bytes() == content):
        write_whole(target, content)


def check_folder(path: object, *, field: str) -> None:
    """Refuses a path that cannot be the folder of a run, a model or a cache.

    Args:
      path: as given by the user.
      field: what to call it in messages.

    Raises:
      InputError: if it is not a path, is empty or blank, is a file, the root of a file system, or a
        URL of an unknown scheme.
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
    """Refuses a file that could not be written, before the work that it is to hold is done.

    Args:
      path: of a file that need not be there, nor its folders.

    Raises:
      InputError: if it is a folder, lies below a file, or must not be written.
    """
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

    Args:
      raw: the bytes.
      where: file or task, for the message.

    Raises:
      InputError: naming `where` and the offset of the first bad byte.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            "convert it, e.g. with `iconv -t UTF-8`"
        ) from error


def read_file(path: Any, what: str) -> bytes:
    """Returns a file's bytes."""
    try:
        return path.read_bytes()
    except Exception as error:  # remote file systems raise errors of their own
        raise InputError(f"cannot read the {what} {path}: {error}") from error
