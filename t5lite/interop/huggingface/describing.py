"""A spec as config and tensors of Hugging Face, and the errors for differences."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import MODULES, family_of
from t5lite.interop.huggingface.families.fields import Unsupported
from t5lite.interop.huggingface.families.labels import SUFFIXES
from t5lite.interop.tensors import Arrays, Source, Tensor
from t5lite.layers import EmbeddingHeadSpec, HeadSpec
from t5lite.models import Difference, ModelSpec, differences

_ABSENT = "absent"
# Fields that change training alone; their configs lack them.
_NOT_SAID = re.compile(r"(encoder|decoder|heads\.\d+)\.(stochastic_depth_rate|dropout_rate)")


class Plan(NamedTuple):
    """The content of `config.json` for a spec, and its tensors as named in the file."""

    config: dict[str, Any]
    tensors: list[Tensor]


def describe(spec: ModelSpec) -> Plan:
    """Returns a spec as config and tensors; InputError as `save`."""
    if spec.family not in MODULES:
        raise InputError(
            f"ModelSpec.family = {spec.family!r}: no class of transformers of that name is "
            f"supported; supported: {', '.join(sorted(MODULES))}",
            field="ModelSpec.family",
        )
    for head in spec.heads:
        if isinstance(head, EmbeddingHeadSpec) and head.size is not None:
            raise _refused(spec, Unsupported("EmbeddingHeadSpec.size", head.size))
    plain, plan, again = _both_ways(spec)
    changed = [
        f"  {change.path}: {change.old} would become {change.new}"
        for change in _changes(plain, again)
        if not _NOT_SAID.fullmatch(change.path)
    ]
    if changed:
        raise _refused(spec, "these values\n" + "\n".join(changed))
    config, tensors = plan
    if spec.start_id is None:
        config |= {"bos_token_id": None, "eos_token_id": None}
    family = family_of(spec.family)
    if config["architectures"] == [family.base]:
        tensors = [_without(tensor, family.prefix) for tensor in tensors]
    return Plan(config, tensors)


def read_back(spec: ModelSpec) -> ModelSpec:
    """Returns the nearest spec of a transformers class, heads aside; InputError for none."""
    return _both_ways(spec)[-1]


def _both_ways(spec: ModelSpec) -> tuple[ModelSpec, Plan, ModelSpec]:
    """Returns a spec without embedding heads, its config and tensors, and the spec read back."""
    family, plain = family_of(spec.family), without_embedding(spec)
    if plain.start_id is None:  # which the tokenizer says there
        plain = plain.replace(start_id=0)
    try:
        plan = Plan(family.config(plain), family.tensors(plain))
        return plain, plan, family.spec(plan.config, _stand_in(plan.tensors))
    except InputError as error:
        raise _refused(spec, error) from error


def _changes(old: ModelSpec, new: ModelSpec) -> list[Difference]:
    """Returns the differences of two specs; one alone for a part of another type."""
    for side in ("encoder", "decoder"):
        stacks = getattr(old, side), getattr(new, side)
        if all(stacks) and len(stacks[0].blocks) != len(stacks[1].blocks):  # then by layer
            unrolled = [s.replace(blocks=s.every_block, first_blocks=()) for s in stacks]
            old, new = (
                spec.replace(**{side: stack})
                for spec, stack in zip((old, new), unrolled, strict=True)
            )
    changes = {change.path: change for change in differences(old, new)}
    for path in [path for path in changes if path.endswith(".type")]:
        if path not in changes:  # inside a part that has been dealt with
            continue
        part = path.removesuffix(".type")
        kinds, values = changes[path], changes.get(part, Difference(part, _ABSENT, _ABSENT))
        whole = [
            value if kind == _ABSENT else kind
            for kind, value in zip(kinds[1:], values[1:], strict=True)
        ]
        changes = {key: change for key, change in changes.items() if not key.startswith(f"{part}.")}
        changes[part] = Difference(part, *whole)
    return [changes[path] for path in sorted(changes)]


def agrees(spec: ModelSpec, plan: "Plan") -> Callable[[Mapping[str, Any]], bool]:
    """Returns whether a config describes a spec, as it is or as `plan` expresses it."""
    family, plain = family_of(spec.family), without_embedding(spec)
    source = _stand_in(family.tensors(plain))

    def read(config: Mapping[str, Any]) -> ModelSpec | None:
        try:
            spec_read = family.spec(config, source)
        except InputError:
            return None
        # A decoder's tokenizer says how texts begin.
        return spec_read.replace(start_id=0) if spec_read.topology == "decoder" else spec_read

    expected = plain.replace(start_id=0) if plain.topology == "decoder" else plain
    specs = (expected, read(plan.config))
    return lambda config: read(config) in specs


def without_embedding(spec: ModelSpec) -> ModelSpec:
    heads = tuple(head for head in spec.heads if not isinstance(head, EmbeddingHeadSpec))
    return spec.replace(heads=heads)


def _stand_in(tensors: list[Tensor]) -> Source:
    """Returns a source of unequal tensors, for a file yet to be written."""
    shapes = {
        tensor.name: jax.ShapeDtypeStruct(tensor.shape, np.float32)
        for tensor in tensors
        if tensor.parts
    }
    return Arrays(shapes, lambda name: np.array([list(shapes).index(name)]))


def _without(tensor: Tensor, prefix: str) -> Tensor:
    return dataclasses.replace(
        tensor,
        name=tensor.name.removeprefix(prefix),
        aliases=tuple(alias.removeprefix(prefix) for alias in tensor.aliases),
    )


def _refused(spec: ModelSpec, reason: InputError | str) -> InputError:
    if isinstance(reason, Unsupported):
        return InputError(
            f"{reason}: transformers' class of ModelSpec.family = {spec.family!r} does not support "
            "it; change it, or the family",
            field=reason.field,
        )
    return InputError(
        f"ModelSpec.family = {spec.family!r}: transformers' class of that name does not support "
        f"{reason}",
        field="ModelSpec.family",
    )


def export_note(spec: ModelSpec) -> str | None:
    """Returns why a head cannot be exported to transformers, and the fix; None if it can.

    None also for families that transformers lacks, and for models without heads for labels.

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
    """Returns the fields in which transformers' nearest head differs."""
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
    """Returns a spec with a head replaced or dropped."""
    index = spec.heads.index(head)
    return spec.replace(heads=(*spec.heads[:index], *new, *spec.heads[index + 1 :]))


def _exports(spec: ModelSpec) -> bool:
    try:
        describe(spec)
    except InputError:
        return False
    return True
