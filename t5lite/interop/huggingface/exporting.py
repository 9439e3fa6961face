"""Whether transformers has a class for a model, checked before training."""

import dataclasses
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.describing import describe, read_back
from t5lite.interop.huggingface.families import MODULES
from t5lite.interop.huggingface.families.labels import SUFFIXES
from t5lite.layers import HeadSpec
from t5lite.models import ModelSpec


def export_note(spec: ModelSpec) -> str | None:
    """Returns why a head cannot be exported to transformers, and the fix; None if it can.

    None also for other families than transformers', and for models without heads for labels.

    Args:
      spec: of the model, before it is trained: a trained head keeps its shape.
    """
    head = next((head for head in spec.heads if type(head) in SUFFIXES), None)
    if spec.family not in MODULES or head is None or _exports(spec):
        return None
    if not _exports(_replaced(spec, head)):
        return None  # not because of the head
    name, change = type(head).__name__, _change(spec, head)
    new = head.replace(**change)
    if not change or not _exports(_replaced(spec, head, new)):
        return (
            f"{name}: transformers has no class of {spec.family!r} with such a head, so that the "
            "trained model cannot be converted to Hugging Face; t5lite itself reads it"
        )
    theirs = describe(_replaced(spec, head, new)).config["architectures"][0]
    old, fields = (
        ", ".join(f"{field} = {getattr(shown, field)!r}" for field in change)
        for shown in (head, new)
    )
    return (
        f"{name} with {old} cannot be converted to transformers' {theirs} after training; "
        f"for that, set {fields} before it"
    )


def _change(spec: ModelSpec, head: HeadSpec) -> dict[str, Any]:
    """Returns the fields of the nearest head that transformers has, where they are others."""
    try:
        heads = read_back(spec).heads
    except InputError:
        return {}
    like = next((near for near in heads if type(near) is type(head)), head)
    values = {field.name: getattr(like, field.name) for field in dataclasses.fields(like)}  # type: ignore[arg-type]
    return {
        name: value
        for name, value in values.items()
        if name != "dropout_rate" and value != getattr(head, name)
    }


def _replaced(spec: ModelSpec, head: HeadSpec, *new: HeadSpec) -> ModelSpec:
    """Returns a spec with another head in a head's place, or none."""
    index = spec.heads.index(head)
    return spec.replace(heads=(*spec.heads[:index], *new, *spec.heads[index + 1 :]))


def _exports(spec: ModelSpec) -> bool:
    try:
        describe(spec)
    except InputError:
        return False
    return True
