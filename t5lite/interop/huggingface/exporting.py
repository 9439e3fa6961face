"""Whether transformers has a class for a model, checked before training."""

import itertools
from collections.abc import Iterator

from t5lite.errors import InputError
from t5lite.interop.huggingface.describing import describe
from t5lite.interop.huggingface.families import MODULES
from t5lite.interop.huggingface.families.labels import SUFFIXES
from t5lite.layers import POOLINGS, HeadSpec
from t5lite.models import ModelSpec

_ACTIVATIONS = ("tanh", "gelu", "relu")  # of poolers in transformers


def export_note(spec: ModelSpec) -> str | None:
    """Returns why a head cannot be exported to transformers, and the fix; None if it can.

    Says nothing of models that are no family of transformers', or without such heads.

    Args:
      spec: of the model, before it is trained: a trained head keeps the shape that it has.
    """
    labelled = [(n, head) for n, head in enumerate(spec.heads) if type(head) in SUFFIXES]
    if spec.family not in MODULES or not labelled or _is_written(spec):
        return None
    index, head = labelled[0]
    if not _is_written(_with(spec, index, None)):
        return None  # it is not the head's fault
    name = type(head).__name__
    for change in _changes(head):
        new = _with(spec, index, head.replace(**change))
        if _is_written(new):
            theirs = describe(new).config["architectures"][0]
            old, fields = (
                ", ".join(f"{field} = {getattr(shown, field)!r}" for field in change)
                for shown in (head, new.heads[index])
            )
            return (
                f"{name} with {old} cannot be converted to transformers' {theirs} after training; "
                f"for that, set {fields} before it"
            )
    return (
        f"{name}: transformers has no class of {spec.family!r} with such a head, so that the "
        "trained model cannot be converted to Hugging Face; t5lite itself reads it"
    )


def _changes(head: HeadSpec) -> Iterator[dict[str, object]]:
    """Yields changes of a pooled head's shape, those of few fields first."""
    if not hasattr(head, "pooling"):
        return
    options: dict[str, tuple[object, ...]] = {
        "pooling": POOLINGS,
        "pooler": (False, True),
        "pooler_activation": _ACTIVATIONS,
        "use_bias": (True, False),
    }
    changes = [
        {
            field: value
            for field, value in zip(options, values, strict=True)
            if getattr(head, field) != value
        }
        for values in itertools.product(*options.values())
    ]
    yield from sorted(changes, key=len)


def _with(spec: ModelSpec, index: int, head: HeadSpec | None) -> ModelSpec:
    heads = (*spec.heads[:index], *([head] if head else []), *spec.heads[index + 1 :])
    return spec.replace(heads=heads)


def _is_written(spec: ModelSpec) -> bool:
    try:
        describe(spec)
    except InputError:
        return False
    return True
