"""Names of labels: what the outputs of a head mean, saved beside the model as `labels.json`."""

import json
import os
from collections.abc import Mapping, Sequence

from t5lite.data.paths import as_path, write_whole
from t5lite.errors import InputError

FILE = "labels.json"
FORMAT_VERSION = 1
_SHOWN = 8  # names in a message

Labels = Mapping[str, Sequence[str]]
"""Label feature to the names of its labels, in the order of their ids."""


def save_labels(folder: str | os.PathLike, labels: Labels) -> None:
    """Writes `labels.json` unless it says the same already; no labels, no file.

    Args:
      folder: where `model.json` lies.
      labels: names by feature.

    Raises:
      InputError: if the file cannot be written.
    """
    path = as_path(folder) / FILE
    names = {feature: list(each) for feature, each in labels.items()}
    if names != load_labels(folder):
        content = {"format_version": FORMAT_VERSION, "labels": names}
        write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def load_labels(folder: str | os.PathLike) -> dict[str, list[str]]:
    """Returns the names that `save_labels` wrote into a folder; {} if there are none.

    Raises:
      InputError: if the file is damaged or of a newer format.
    """
    path = as_path(folder) / FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        version, labels = content["format_version"], content["labels"]
        labels = {feature: [*map(_text, names)] for feature, names in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; restore it from a backup") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {version}; this t5lite reads {FORMAT_VERSION}: use the t5lite "
            "that wrote it"
        )
    return labels


def check_labels(labels: Labels, known: Labels, *, where: str = "the model") -> None:
    """Refuses labels that have other names, or another order, than those of a model.

    Args:
      labels: of the data.
      known: of the model; features that only one of the two has are not compared.
      where: which model, for the message.

    Raises:
      InputError: listing both.
    """
    for feature, names in labels.items():
        if feature in known and list(names) != list(known[feature]):
            raise InputError(
                f"the labels of {feature!r} are not those of {where}:\n"
                f"  data:  {_listed(names)}\n"
                f"  model: {_listed(known[feature])}\n"
                "set the model's as `classes` (of Class or Tags in the data's features), or begin "
                "with a fresh head in a new folder"
            )


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a name")
    return name
