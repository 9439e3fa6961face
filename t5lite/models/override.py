"""Specs by name, and specs with some values changed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.errors import InputError, unknown
from t5lite.layers import Spec
from t5lite.models.presets import PRESETS, preset, same_architecture
from t5lite.models.spec import ModelSpec, StackSpec, load_spec
from t5lite.paths import as_path, exists

# Filled by `interop`, a floor above, which opens other libraries' folders.
_FOLDER_READERS: list[Callable[[str], ModelSpec]] = []


def reads_folders(reader: Callable[[str], ModelSpec]) -> Callable[[str], ModelSpec]:
    """Registers the function with which `named_spec` opens folders without a `model.json`."""
    _FOLDER_READERS[:] = [reader]
    return reader


def named_spec(model: str | ModelSpec) -> ModelSpec:
    """Returns the architecture of a name; a spec is returned unchanged.

    Args:
      model: a preset's name; a folder with a `model.json` (of a run, or of `t5lite convert` or
        `adapt`); once `t5lite.interop` is imported, as by every command, also a Hugging Face folder
        or hub name and a T5X checkpoint.
    Raises: InputError for any other name, with the nearest presets.
    """
    if isinstance(model, ModelSpec):
        return model
    if not isinstance(model, str):
        raise InputError(
            f"model = {model!r}: must be a preset's name, a folder or a ModelSpec", field="model"
        )
    if model in PRESETS:
        return PRESETS[model]
    try:
        folder = as_path(model)
        if exists(folder / "model.json"):
            return load_spec(folder / "model.json")
    except InputError as error:
        raise InputError(f"model = {model!r}: {error}", field="model") from error
    if not folder.is_dir() and "/" not in model:
        return preset(model)
    if not _FOLDER_READERS:
        raise InputError(
            f"model = {model!r}: neither a preset nor a folder with a model.json; to read folders "
            "of other libraries, `import t5lite.interop` first",
            field="model",
        )
    try:
        return _FOLDER_READERS[0](model)
    except InputError as error:
        text = str(error)
        if not folder.is_dir() and (match := same_architecture(model)):
            text += f"\nits architecture alone, without its weights: model = {match!r}"
        raise InputError(text, field="model") from error


def override(model: str | ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """Returns a spec with some values changed, addressed by their path.

    Args:
      model: see `named_spec`.
      changes: path → value. A step of a path is a field's name, the index of a block, or `*` for
        every block (or, at the start, for every stack), e.g.
        `{"decoder.blocks.*.mlp.hidden": 4096, "*.dropout_rate": 0.1}`.
    Raises: InputError if a path does not exist (with the nearest names) or a value does not fit.
    """
    spec = named_spec(model)
    for path, value in changes.items():
        spec = _set(spec, path.split("."), value, path)
    return spec


def _set(node: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return tuple(value) if isinstance(value, list) else value
    step, *rest = steps
    if isinstance(node, tuple):
        chosen = range(len(node)) if step == "*" else _indices(node, step, path)
        return tuple(
            _set(item, rest, value, path) if index in chosen else item
            for index, item in enumerate(node)
        )
    if not isinstance(node, Spec):
        raise InputError(f"override {path!r}: nothing below {node!r} has a field {step!r}")
    fields = [field.name for field in dataclasses.fields(node)]
    if step == "*":
        names = [name for name in fields if isinstance(getattr(node, name), StackSpec)]
        if not names:
            raise InputError(f"override {path!r}: `*` stands for every stack or every block")
    elif step not in fields:
        raise unknown(f"field in override {path!r}", step, fields)
    else:
        names = [step]
    return node.replace(**{n: _set(getattr(node, n), rest, value, path) for n in names})


def _indices(node: tuple, step: str, path: str) -> list[int]:
    if not step.isdigit() or int(step) >= len(node):
        raise InputError(f"override {path!r}: {step!r} is neither `*` nor below {len(node)}")
    return [int(step)]
