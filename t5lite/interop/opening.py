"""Opens any checkpoint folder: t5lite's own, Hugging Face's or T5X's, without a configuration."""

import os
import re

from etils import epath

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.interop import huggingface, t5x
from t5lite.interop.adapters import check_adapter, is_adapter
from t5lite.interop.hub import check_revision, from_hub, split_name
from t5lite.interop.opened import Opened
from t5lite.interop.own import OwnCheckpoint
from t5lite.models import ModelSpec, reads_folders
from t5lite.training.restore import absolute, saved_steps


def open_model(
    where: epath.PathLike,
    *,
    step: int | None = None,
    vocabulary: Vocabulary | None = None,
    spec: ModelSpec | None = None,
    revision: str | None = None,
    averaged: bool = True,
) -> Opened:
    """Opens a checkpoint of t5lite, Hugging Face or T5X, reading everything except its arrays.

    Args:
      where: a folder or hub name; see `t5lite.load`.
      step: which checkpoint of a model_dir, or `checkpoint_N` of T5X; None for the newest.
      vocabulary, spec, revision: see `t5lite.load`.
      averaged: whether the parameters are their average, of a run of t5lite that kept one.

    Raises:
      InputError: see `t5lite.load`.
    """
    kind, path = kind_of(where, revision=revision)
    if spec is not None and kind != "t5x":
        raise InputError(
            f"spec = …: is for T5X checkpoints alone, and {path} says what it holds", field="spec"
        )
    if kind == "huggingface":
        if step is not None:
            raise InputError(
                f"step = {step}: {path} is a Hugging Face folder, which has no steps", field="step"
            )
        return huggingface.open_model(path, vocabulary=vocabulary)
    if kind == "t5x":
        return t5x.open_model(path, spec=spec, step=step, vocabulary=vocabulary)
    return OwnCheckpoint.open(
        path, vocabulary=vocabulary, step=step, averaged=averaged, open_base=open_model
    )


@reads_folders
def spec_of(folder: str) -> ModelSpec:
    """Returns the architecture of a folder, for `models.named_spec`."""
    return open_model(folder).spec


def kind_of(folder: epath.PathLike, *, revision: str | None = None) -> tuple[str, str]:
    """Returns the kind of a folder, "t5lite", "huggingface" or "t5x", and its path.

    Args:
      folder: or `ORGANISATION/NAME[@REVISION]` of the Hugging Face hub, which is downloaded.
      revision: of a name of the hub; None for its own, or the default branch.

    Raises:
      InputError: if there is no such folder, or it is of no known kind.
    """
    path = absolute(folder)
    if not _exists(path):
        return "huggingface", _downloaded(os.fspath(folder), revision)
    check_revision(folder, revision)
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the folder that it lies in")
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


def _exists(path: epath.Path) -> bool:
    """Whether a folder is there.

    Raises:
      InputError: if it is remote and cannot be reached.
    """
    try:
        return path.exists()
    except Exception as error:  # each kind of storage has errors of its own
        if "://" not in str(path):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path} cannot be reached: {reason}\ncheck the network and the login "
            "(`gcloud auth application-default login`), or copy the folder to a local disk"
        ) from error


def _downloaded(text: str, revision: str | None) -> str:
    """Returns the folder of a name of the hub, once it is here.

    Raises:
      InputError: if it is not a name of the hub, or there is no such model that may be downloaded.
    """
    name = split_name(text)
    if "://" in text:
        raise InputError(f"there is no folder {text!r}; list its bucket: gcloud storage ls")
    if name is None:
        raise InputError(
            f"there is no folder {text!r}; give a model_dir, a Hugging Face folder, "
            "a T5X checkpoint, or ORGANISATION/NAME of the Hugging Face hub"
        )
    model, own = name
    if own is not None and revision not in (None, own):
        raise InputError(
            f"revision = {revision!r}: {text!r} names another; give one of them", field="revision"
        )
    folder = epath.Path(from_hub(model, revision=own or revision))
    check_adapter(folder, weights=huggingface.has_weights(folder))
    if not huggingface.is_folder(folder):
        names = ", ".join(sorted(child.name for child in folder.iterdir())[:8])
        raise InputError(
            f"{model} of the Hugging Face hub is not a model of transformers: it has no "
            f"config.json, but {names or 'none of the files that are read'}; give another name"
        )
    return str(folder)


def _nothing(folder: epath.Path) -> str:
    """Returns the error message for a folder of no known kind."""
    names = sorted(child.name for child in folder.iterdir())
    if inside := [name for name in names if _is_checkpoint(folder / name)]:
        # By their numbers: checkpoint-500 comes before checkpoint-1000.
        inside.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        listed = ", ".join(inside[-8:]) + (f" and {len(inside) - 8} more" if inside[8:] else "")
        return (
            f"no checkpoint in '{folder}' itself, but in folders inside it: {listed}\n"
            f"give one of them: {folder / inside[-1]}"
        )
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"no checkpoint in '{folder}', which holds {shown or 'nothing'}; needed are\n"
        "  t5lite: a model_dir (model.json, checkpoints/), its checkpoints/, or one step's folder\n"
        "  Hugging Face: config.json beside model.safetensors, or beside parts with an index\n"
        "  T5X: checkpoint_N, or the folder that holds some"
    )


def _is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder holds a model or an adapter."""
    if not folder.is_dir():
        return False
    return (
        (folder / "model.json").exists()
        or (huggingface.is_folder(folder) and huggingface.has_weights(folder))
        or is_adapter(folder)
        or bool(saved_steps(folder))
        or t5x.find_checkpoint(folder) is not None
    )
