"""Downloads of models from the Hugging Face hub."""

import json
import re
from pathlib import Path

from t5lite.errors import InputError

_NAME = re.compile(r"(?P<model>(?!\.)[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
# No pickles: a file that is not downloaded cannot be opened by mistake.
_SMALL = ("*.json", "*.model", "*.txt", "*.spm", "*.jinja")
# Weights once: no `consolidated.safetensors`, other precisions, or other programs' copies.
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DENSE = "*_Dense/model.safetensors"  # sentence-transformers' layer after the pooling
_COPIES = ("onnx/*", "openvino/*", "original/*", "coreml/*", "gguf/*", "metal/*", "flax/*")


def from_hub(text: str, *, revision: str | None = None) -> str:
    """Returns the local folder of a model, downloaded unless it is in the library's cache.

    Args:
      text: `ORGANISATION/NAME[@REVISION]`.
      revision: a branch, a tag or a commit; None for that of `text`, or the default branch.

    Raises: InputError for an invalid name, huggingface_hub not installed, the hub out of reach, no
      such model or revision, or no access for this user.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise InputError(
            f"there is no folder {text!r}; give a model_dir, a Hugging Face folder, "
            "a T5X checkpoint, or ORGANISATION/NAME of the Hugging Face hub"
        )
    name = match["model"]
    if match["revision"] and revision not in (None, match["revision"]):
        raise InputError(
            f"revision = {revision!r}: {text!r} names another; give one of them", field="revision"
        )
    revision = match["revision"] or revision
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            f"there is no folder {name!r}; to load a model of that name from the Hugging Face hub: "
            "pip install huggingface_hub"
        ) from error

    def fetch(*patterns: str) -> str:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_COPIES)
        )

    try:
        folder = fetch(*_SMALL, _WHOLE, _DENSE)
        if not (Path(folder) / _WHOLE).exists() and (parts := _parts(Path(folder))):
            folder = fetch(*_SMALL, *parts, _DENSE)
    except Exception as error:  # its own, Python's, and its network library's
        raise _failure(name, revision, error) from error
    return folder


def _parts(folder: Path) -> list[str]:
    """Returns the files that an index names; [] without an index, or for a damaged one."""
    try:
        return sorted(set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # reported where the folder is opened


def _failure(name: str, revision: str | None, error: Exception) -> InputError:
    # By name: the classes have moved between versions of the library.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
    page = f"https://huggingface.co/{name}"
    if "GatedRepoError" in kinds:
        return InputError(
            f"the Hugging Face hub requires accepting the terms of {name!r}: "
            f"accept them at {page} and log in (`hf auth login`, or set HF_TOKEN)"
        )
    if "RevisionNotFoundError" in kinds:
        return InputError(
            f"revision = {revision!r}: the Hugging Face hub's {name!r} has no revision "
            f"{revision!r}; give a branch, a tag or a commit of {page}/commits/main",
            field="revision",
        )
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return InputError(
            f"there is no folder {name!r}, and no model of that name on the Hugging Face hub; "
            "check the spelling, or log in if it is private (`hf auth login`, or set HF_TOKEN)"
        )
    return InputError(
        f"there is no folder {name!r}, and the Hugging Face hub cannot be reached for a model of "
        f"that name: {reason}\ncheck the network and try again, or download it elsewhere "
        f"(`hf download {name}`) and give the folder"
    )
