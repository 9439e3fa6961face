"""Architectures as data: the base of every spec, its checks and its JSON form."""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from t5lite.errors import InputError, unknown


@dataclasses.dataclass(frozen=True)
class Spec:
    """A frozen dataclass that describes a part of a model.

    Subclasses are registered by class name: `from_json` instantiates nothing else, and a file never
    names an import path. A name belongs to one module, which may define the class again (as a
    notebook's cell does). gin accepts any value (`hidden = 3.7`), so fields are checked.

    Raises: InputError if a field's value does not have the field's type.
    """

    registry: ClassVar[dict[str, type["Spec"]]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        first = Spec.registry.setdefault(cls.__name__, cls)
        if first.__module__ != cls.__module__:
            raise InputError(
                f"{cls.__module__}.{cls.__name__}: a spec of this name is defined by "
                f"{first.__module__}, and files refer to specs by name; rename yours"
            )
        Spec.registry[cls.__name__] = cls

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if type(value) is int and hint is float:
                object.__setattr__(self, field.name, float(value))
            elif not _matches(value, hint):
                name = f"{type(self).__name__}.{field.name}"
                raise InputError(f"{name} = {value!r}: expected {_name(hint)}")
            least = field.metadata.get("at_least", 1 if field.name.startswith("num_") else None)
            if least is not None:
                self.require(value is None or value >= least, field.name, f"at least {least}")
            if (bound := field.metadata.get("above")) is not None:
                expected = f"above {bound}" + (", or None" if field.default is None else "")
                self.require(value is None or value > bound, field.name, expected)
            choices = field.metadata.get("choices")
            if choices is not None and value is not None and value not in choices:
                raise unknown(f"{type(self).__name__}.{field.name}", value, choices)
            if field.name.endswith("_rate"):
                self.require(0 <= value < 1, field.name, "in [0, 1)")

    def require(self, condition: bool, field: str, expected: str) -> None:
        """Raises an InputError that names `field`, its value and what is `expected`."""
        if not condition:
            name = f"{type(self).__name__}.{field}"
            raise InputError(f"{name} = {getattr(self, field)!r}: must be {expected}", field=name)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with `changes`, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-able dictionary; `type` holds the class name of each spec in it, `module`
        that of your own class's module, for readers: it is never imported."""
        kind = {"type": type(self).__name__}
        if not type(self).__module__.startswith("t5lite."):
            kind["module"] = type(self).__module__
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return kind | {k: _encode(v) for k, v in fields.items()}

    @staticmethod
    def from_json(encoded: Mapping[str, Any]) -> Any:
        """Builds the spec that `to_json` encoded; an InputError for an unknown type or field."""
        return _decode(encoded)


def choice(choices: Collection[str], default: str | None) -> Any:
    """A dataclass field that must be one of `choices`, or None where its type has it."""
    return dataclasses.field(default=default, metadata={"choices": choices})


def at_least(least: int, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of at least `least`, or None where its type has it."""
    return dataclasses.field(default=default, metadata={"at_least": least})


def above(bound: int, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field above `bound`, or None where its type has it."""
    return dataclasses.field(default=default, metadata={"above": bound})


def positive(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of at least 1."""
    return at_least(1, default)


def _encode(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_json()
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    fields = dict(value)
    name, module = fields.pop("type", None), fields.pop("module", None)
    cls = Spec.registry.get(name)
    if cls is None and module is not None:
        raise InputError(
            f"spec type {name!r} is defined in {module}: import that module first "
            f"(on the command line --module={module})"
        )
    if cls is None:
        raise unknown("spec type", name, Spec.registry)
    names = {field.name for field in dataclasses.fields(cls)}
    for field in fields:
        if field not in names:
            raise unknown(f"field of {name}", field, names)
    return cls(**{field: _decode(item) for field, item in fields.items()})


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:  # the spec's own check
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, arguments[0]) for item in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
