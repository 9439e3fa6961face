"""Atomic writes of text files, and a look-up of installed libraries."""

import importlib.util

from etils import epath


def replace_text(path: epath.Path, text: str) -> None:
    """Replaces a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def installed(library: str) -> bool:
    """Whether a library can be imported; imports nothing."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
