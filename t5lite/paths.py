"""Paths, local or in an object store."""

import os
import re
from pathlib import Path
from typing import Any

from t5lite.errors import InputError

_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)(/.*)?")


def as_path(path: str | os.PathLike) -> Any:
    """Returns a `pathlib.Path`, or the path of `etils` for `gs://`, `s3://` and the like.

    Raises: InputError for a URL of any other scheme.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text).expanduser()
    if page := _PAGE.fullmatch(text):
        raise InputError(f"{text!r} is a web page; give the name of its model, {page[1]!r}")
    from etils import epath

    try:
        return epath.Path(text)
    except KeyError as error:
        scheme = text.partition("://")[0]
        raise InputError(
            f"{text!r}: folders of {scheme}:// cannot be read or written; copy it to a local disk, "
            "or to gs://"
        ) from error


def exists(path: Any) -> bool:
    """Whether a path of `as_path` exists.

    Raises: InputError if it is remote and cannot be reached.
    """
    try:
        return path.exists()  # type: ignore[no-any-return]
    except Exception as error:  # each kind of storage has errors of its own
        if "://" not in (text := os.fspath(path)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if text.startswith("gs://"):
            fix = "check the network and the login (`gcloud auth application-default login`), or "
        else:
            fix = "this installation may lack a driver for its storage: "
        raise InputError(
            f"{text} cannot be reached: {reason}\n{fix}copy the folder to a local disk"
        ) from error
