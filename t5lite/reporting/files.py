"""Text files replaced whole, and libraries looked up."""

import importlib.util

from etils import epath


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a file anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def installed(library: str) -> bool:
    """Whether a library can be imported; nothing is."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False
