"""Everything between two published architectures: specs with some values changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from t5lite.errors import InputError, unknown
from t5lite.layers import Spec
from t5lite.models.presets import PRESETS, preset
from t5lite.models.spec import ModelSpec, StackSpec, load_spec


def override(model: str | ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """Returns a spec with some values changed, addressed by their path.

    Args:
      model: a preset's name, a folder with a `model.json` (a run's, or what `t5lite convert` and
        `adapt` wrote), or a spec.
      changes: path → value. A step of a path is a field's name, the index of a block, or `*` for
        every block (or, in front, for every stack), e.g. `{"decoder.blocks.*.mlp.hidden": 4096,
        "*.dropout_rate": 0.1}`.

    Raises:
      InputError: if a path does not exist (with the nearest names) or a value does not fit.
    """
    spec = _named(model) if isinstance(model, str) else model
    for path, value in changes.items():
        spec = _set(spec, path.split("."), value, path)
    return spec


def _named(model: str) -> ModelSpec:
    path = epath.Path(model).expanduser() / "model.json"
    if model not in PRESETS and ("/" in model or path.exists()):
        return load_spec(path)
    return preset(model)


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
