"""One table that reads and writes both `config.json` and the fields of our specs."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from t5lite.errors import InputError
from t5lite.interop.tensors import Source
from t5lite.layers import AttentionSpec, HeadSpec, MlpSpec, Spec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

Config = Mapping[str, Any]
T = TypeVar("T")
_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "an object",
}


class Unsupported(InputError):
    """A part of a spec, with its field, that the files of a family cannot express."""

    def __init__(self, field: str, value: Any):
        shown = type(value).__name__ if isinstance(value, Spec) else repr(value)
        super().__init__(f"{field} = {shown}", field=field)


class Conversion(NamedTuple):
    """Conversion of a field: `read` (value, field's name) to ours, `write` to the config's."""

    read: Callable[[Any, str], Any]
    write: Callable[[Any], Any]


class Field(NamedTuple):
    """A field of `config.json`.

    Args:
      default: of transformers' config class: what config.json may leave out. A field may be null
        where its default is, or where it is true or false.
      path: of the same value in a spec: of a field of ModelSpec, or of a part of a stack, such as
        `attention.num_heads`; see `_parts`. "" for a field that its family converts.
      conversion: between the two; None where they are equal.
      kind: type of the values; None for that of the default, `object` for any.
      nullable: whether it may be null all the same.
      least: value of an integer.
    """

    default: Any
    path: str = ""
    conversion: Conversion | None = None
    kind: type | None = None
    nullable: bool = False
    least: int = 1


Fields = Mapping[str, Field]


def with_defaults(fields: Fields, **defaults: Any) -> dict[str, Field]:
    """Returns fields with the defaults of another class."""
    changed = {name: fields[name]._replace(default=value) for name, value in defaults.items()}
    return {**fields, **changed}


class Foreign(NamedTuple):
    """A config and its tensors, from which a family makes a spec.

    Args:
      config: complete, with the defaults of its class.
      source: the tensors, which show what is tied where configs err.
      parts: arguments of our specs, by part: "model", "stack", "attention", "mlp", "norm", ….
    """

    config: Config
    source: Source
    parts: dict[str, dict[str, Any]]

    def attention(self, **options: Any) -> AttentionSpec:
        fields = {**self.parts["attention"], **options}
        kv_heads = fields.pop("kv_heads", None)
        kv_heads = None if kv_heads == fields["num_heads"] else kv_heads
        return AttentionSpec(num_kv_heads=kv_heads, **fields)

    def mlp(self, **options: Any) -> MlpSpec:
        return MlpSpec(**self.parts["mlp"], **options)


Heads = Callable[[Foreign], tuple[HeadSpec, ...]]


def read(fields: Fields, config: Config, source: Source, *, prefix: str = "") -> Foreign:
    """Reads a complete config by a table.

    Args:
      fields: by name, without `prefix`.
      prefix: of the names in the config (`encoder_`).

    Raises: InputError for a value of another type than its field's, or a width that its heads do
      not divide.
    """
    parts: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    names = {field.path: prefix + name for name, field in fields.items()}
    for suffix, field in fields.items():
        name = prefix + suffix
        value = config[name]
        _check(name, value, field)
        if field.path and value is not None:
            part, _, attribute = field.path.rpartition(".")
            value = field.conversion.read(value, name) if field.conversion else value
            parts[part or "model"][attribute] = value
    heads, width = parts["attention"].get("num_heads"), parts["model"].get("embed")
    if heads and width and "head_dim" not in parts["attention"]:
        if width % heads:
            field_name = names["embed"]
            raise InputError(
                f"{field_name} = {width} is not a multiple of "
                f"{names['attention.num_heads']} = {heads}",
                field=field_name,
            )
        parts["attention"]["head_dim"] = width // heads
    return Foreign(config, source, parts)


def _check(name: str, value: Any, field: Field) -> None:
    kind = field.kind or type(field.default)
    nullable = field.nullable or field.default is None or kind is bool
    if kind is object or (value is None and nullable):
        return
    accepted = (int, float) if kind is float else kind
    right = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not right:
        raise InputError(f"{name} = {value!r}: must be {_KINDS[kind]}", field=name)
    if kind is int and value < field.least:
        raise InputError(f"{name} = {value!r}: must be at least {field.least}", field=name)
    if field.path.endswith("_rate") and not 0 <= value < 1:
        raise InputError(f"{name} = {value!r}: must be in [0, 1)", field=name)


def write(fields: Fields, spec: ModelSpec, side: str, *, prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a config that have a path, with the values in a spec.

    Fields that a part of another type lacks keep defaults, which differ when read back.

    Args:
      fields: by name, without `prefix`.
      side: the stack that the fields describe, "encoder" or "decoder".
      prefix: of the names in the config.
    """
    parts, content = _parts(spec, side), {}
    for name, field in fields.items():
        if field.path:
            part, _, attribute = field.path.rpartition(".")
            value = getattr(parts[part or "model"], attribute, ...)
            if value is ...:
                value = field.default
            elif field.conversion is not None:
                value = field.conversion.write(value)
            content[prefix + name] = value
    return content


def _parts(spec: ModelSpec, side: str) -> dict[str, Any]:
    """Returns the parts of a spec that paths begin with: those of a stack's first layer."""
    stack = stack_of(spec, side)
    block = stack.every_block[0]
    return {
        "model": spec,
        "init": spec.init,
        "stack": stack,
        "positions": stack.position_embedding,
        "bias": stack.position_bias,
        "block": block,
        "norm": block.norm,
        "attention": block.attention,
        "mlp": block.mlp,
    }


def unsupported(field: str, value: Any, supported: Iterable[Any], why: str = "") -> InputError:
    """Returns the error for a config value without a spec."""
    listed = ", ".join(item if isinstance(item, str) else repr(item) for item in supported)
    return InputError(
        f"{field} = {value!r} is not supported{why and f' ({why})'}; supported: {listed}",
        field=field,
    )


def check(config: Config, **supported: tuple[Any, ...]) -> None:
    """Raises an InputError unless present fields have supported values."""
    for field, values in supported.items():
        if field in config and config[field] not in values:
            raise unsupported(field, config[field], values[:1])


def expect(value: Any, kind: type[T], field: str) -> T:
    """Returns a part of a spec if it is of a kind; otherwise raises `Unsupported`."""
    if not isinstance(value, kind):
        raise Unsupported(field, value)
    return value


def stack_of(spec: ModelSpec, side: str) -> StackSpec:
    """Returns a required stack of transformer layers."""
    stack = expect(getattr(spec, side), StackSpec, side)
    for index, block in enumerate(stack.every_block):
        expect(block, TransformerBlockSpec, f"{side}.blocks.{index}")
    return stack


def first_id(config: Config, *names: str) -> int:
    """Returns the first token id in these fields, or 0.

    Ids beyond the vocabulary, which only models cut down for tests have, are skipped.
    """
    for name in names:
        ids = config.get(name)
        first = ids[0] if isinstance(ids, list | tuple) and ids else ids
        if isinstance(first, int) and 0 <= first < config["vocab_size"]:
            return first
    return 0
