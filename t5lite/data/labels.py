"""Names of a head's labels, saved beside the model as `labels.json`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.data.paths import as_path, read_json, write_json
from t5lite.errors import InputError

FILE = "labels.json"
FORMAT_VERSION = 1
_SHOWN = 8  # names in a message

Labels = Mapping[str, Sequence[str]]
"""Label feature to the names of its labels, in the order of their ids."""


def save_labels(folder: str | os.PathLike, labels: Labels) -> None:
    """Writes `labels.json`, names by feature, beside `model.json`; no labels, no file."""
    names = {feature: list(own) for feature, own in labels.items()}
    if names != load_labels(folder):
        write_json(as_path(folder) / FILE, {"labels": names}, version=FORMAT_VERSION)


def load_labels(folder: str | os.PathLike) -> dict[str, list[str]]:
    """Returns what `save_labels` wrote into a folder, or {}; raises InputError if damaged."""
    path = as_path(folder) / FILE
    return read_json(path, _parsed, version=FORMAT_VERSION) if path.exists() else {}


def check_labels(labels: Labels, expected: Labels, *, where: str = "the model") -> None:
    """Refuses labels of data whose names or order differ from a model's, with an InputError.

    Features that only one of the two has are not compared; `where` is the model, in the message.
    """
    for feature, names in labels.items():
        if feature in expected and list(names) != list(expected[feature]):
            raise InputError(
                f"the labels of {feature!r} are not those of {where}:\n"
                f"  data:  {_listed(names)}\n"
                f"  model: {_listed(expected[feature])}\n"
                "set the model's as `classes` (of Class or Tags in the data's features), or begin "
                "with a fresh head in a new folder"
            )


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _parsed(content: dict[str, Any]) -> dict[str, list[str]]:
    labels = {feature: list(names) for feature, names in content["labels"].items()}
    for name in (name for names in labels.values() for name in names):
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is not a name")
    return labels
