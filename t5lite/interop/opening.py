"""Opens checkpoint folders of t5lite, Hugging Face and T5X, without a configuration."""

import os
import re

from etils import epath

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.interop import huggingface, t5x
from t5lite.interop.adapters import check_adapter, is_adapter
from t5lite.interop.description import Description
from t5lite.interop.hub import from_hub
from t5lite.interop.opened import Opened
from t5lite.interop.own import OwnCheckpoint, locate
from t5lite.models import ModelSpec, reads_folders
from t5lite.paths import exists
from t5lite.training.restore import absolute, saved_steps

_MOST = 8  # names in a message


def open_model(
    folder: epath.PathLike,
    *,
    step: int | None = None,
    vocabulary: Vocabulary | None = None,
    spec: ModelSpec | None = None,
    revision: str | None = None,
    averaged: bool = True,
) -> Opened:
    """Opens a checkpoint of t5lite, Hugging Face or T5X, reading everything except its arrays.

    Args:
      folder: or a hub name; see `t5lite.load`, also for `vocabulary`, `spec` and `revision`.
      step: which checkpoint of a model_dir, or `checkpoint_N` of T5X; None for the newest.
      averaged: whether the average of the parameters is read, of a run of t5lite that kept one.

    Raises: InputError as `t5lite.load`.
    """
    kind, path = kind_of(folder, revision=revision)
    if spec is not None and kind != "t5x":
        raise InputError(
            f"spec = …: is for T5X checkpoints alone, and {path} stores its own; leave it out",
            field="spec",
        )
    if kind == "huggingface":
        if step is not None:
            raise InputError(
                f"step = {step}: {path} is a Hugging Face folder, which has no steps", field="step"
            )
        return huggingface.open_model(path, vocabulary=vocabulary)
    if kind == "t5x":
        return t5x.open_model(path, spec=spec, step=step, vocabulary=vocabulary)
    step_folder, home = locate(path, step=step)
    description = Description.read(home, vocabulary=vocabulary)
    return OwnCheckpoint(description, step_folder, home, averaged, open_model)


@reads_folders
def spec_of(folder: str) -> ModelSpec:
    """Returns the architecture of a folder, for `models.named_spec`."""
    return open_model(folder).spec


def kind_of(folder: epath.PathLike, *, revision: str | None = None) -> tuple[str, str]:
    """Returns the kind of a folder, "t5lite", "huggingface" or "t5x", and its path.

    Args:
      folder: or `ORGANISATION/NAME[@REVISION]` of the Hugging Face hub, which is downloaded.
      revision: of a name of the hub; None for its own, or the default branch.

    Raises: InputError for a missing folder, one that cannot be reached, or of no known kind.
    """
    text = os.fspath(folder)
    path = absolute(folder)
    if not exists(path):
        if "://" in text:
            raise InputError(f"there is no folder {text!r}; list its bucket, or fix the path")
        path = epath.Path(from_hub(text, revision=revision))
        check_adapter(path, weights=huggingface.has_weights(path))
        if not huggingface.is_folder(path):
            raise InputError(
                f"{text} of the Hugging Face hub is not a model of transformers: it has no "
                f"config.json, but {_names(path)}; give another name"
            )
        return "huggingface", str(path)
    if revision is not None:
        raise InputError(
            f"revision = {revision!r}: is for models of the Hugging Face hub, and {text!r} is a "
            "folder; leave it out",
            field="revision",
        )
    if not path.is_dir():
        raise InputError(f"{path} is a file; give its folder")
    # Folders of the others may lie inside a run's.
    if (path / "model.json").exists():
        return "t5lite", str(path)
    if huggingface.is_folder(path):
        check_adapter(path, weights=huggingface.has_weights(path))
        return "huggingface", str(path)
    # One step of a run has a `state` as T5X's Orbax output does, and `progress` beside it.
    if saved_steps(path) or (path / "progress").exists():
        return "t5lite", str(path)
    check_adapter(path, weights=False)
    if t5x.find_checkpoint(path) is not None:
        return "t5x", str(path)
    raise InputError(_nothing(path))


def _nothing(folder: epath.Path) -> str:
    if inside := [path.name for path in folder.iterdir() if _is_checkpoint(path)]:
        # By number: checkpoint-500 comes before checkpoint-1000.
        inside.sort(key=lambda name: ([int(n) for n in re.findall(r"\d+", name)], name))
        more = f" and {len(inside) - _MOST} more" if inside[_MOST:] else ""
        return (
            f"no checkpoint in '{folder}' itself, but in folders inside it: "
            f"{', '.join(inside[-_MOST:])}{more}\ngive one of them: {folder / inside[-1]}"
        )
    return (
        f"no checkpoint in '{folder}', which holds {_names(folder)}; needed are\n"
        "  t5lite: a model_dir (model.json, checkpoints/), its checkpoints/, or one step's folder\n"
        "  Hugging Face: config.json beside model.safetensors, or beside parts with an index\n"
        "  T5X: checkpoint_N, or the folder that holds some"
    )


def _names(folder: epath.Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - _MOST} more" if names[_MOST:] else ""
    return ", ".join(names[:_MOST]) + more or "nothing"


def _is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder holds a model or an adapter."""
    return folder.is_dir() and (
        (folder / "model.json").exists()
        or (huggingface.is_folder(folder) and huggingface.has_weights(folder))
        or is_adapter(folder)
        or bool(saved_steps(folder))
        or t5x.find_checkpoint(folder) is not None
    )
