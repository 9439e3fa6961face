"""The contract of a family of Hugging Face models, and what the families share to fulfil it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from t5lite.errors import InputError
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import HeadSpec
from t5lite.models import ModelSpec, StackSpec

Config = Mapping[str, Any]
Heads = Callable[[Config, Source], tuple[HeadSpec, ...]]
T = TypeVar("T")


class Unsupported(InputError):
    """A part of a spec that the files of a family cannot express.

    Args:
      field: of the spec.
      value: the part.
    """

    def __init__(self, field: str, value: Any):
        kind = "None" if value is None else f"a {type(value).__name__}"
        super().__init__(f"{field} as {kind}", field=field)


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Args:
      spec: makes a spec of `config.json` and the weights, which say what is tied where configs err.
      config: makes the content of `config.json` of a spec. It need not check what the family cannot
        express: `describe` compares the spec with the one that comes back.
      tensors: maps each tensor of a model with a head to parameters.
      classes: the beginning of its architectures' names.
      prefix: of the base model's tensors in a file of a model with a head.
      ignored: regular expressions of names that files may have although the spec says all that is
        in them: buffers, and heads that are left out.
      renamed: pairs of a regular expression and its replacement for names in older files.
    """

    spec: Callable[[Config, Source], ModelSpec]
    config: Callable[[ModelSpec], dict[str, Any]]
    tensors: Callable[[ModelSpec], list[Tensor]]
    classes: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def base(self) -> str:
        """The architecture without a head, whose files lack the prefix."""
        return f"{self.classes}Model"


def suffix_of(classes: str, heads: Iterable[str], config: Config, *, also: str = "") -> str:
    """Returns the end of a config's architecture; the first of `heads` if it names none.

    Args:
      classes: the beginning of the family's architectures.
      heads: what may follow it.
      config: with `architectures`, or without.
      also: another beginning, under which some of the family's models were saved.

    Raises:
      InputError: for another architecture.
    """
    first, *_ = heads = tuple(heads)
    name = (config.get("architectures") or [classes + first])[0]
    for suffix in heads:
        if name == classes + suffix or (also and name == also + suffix):
            return suffix
    raise unsupported("architectures", [name], (classes + suffix for suffix in heads))


def heads_of(
    classes: str, heads: Mapping[str, Heads], config: Config, source: Source, *, also: str = ""
) -> tuple[HeadSpec, ...]:
    """Returns the heads of a config's architecture; see `suffix_of`."""
    return heads[suffix_of(classes, heads, config, also=also)](config, source)


def no_heads(config: Config, source: Source) -> tuple[HeadSpec, ...]:
    """The heads of a base model."""
    del config, source
    return ()


def unsupported(field: str, value: Any, supported: Iterable[Any], why: str = "") -> InputError:
    """Returns the error for a value of a config that no spec expresses."""
    known = ", ".join(item if isinstance(item, str) else repr(item) for item in supported)
    return InputError(
        f"{field} = {value!r} is not supported{why and f' ({why})'}; supported: {known}",
        field=field,
    )


def check_fields(config: Config, **supported: tuple[Any, ...]) -> None:
    """Raises an InputError unless fields, where a config has them, have supported values."""
    for field, values in supported.items():
        if field in config and config[field] not in values:
            raise unsupported(field, config[field], values[:1])


def expect(value: Any, kind: type[T], field: str) -> T:
    """Returns a part of a spec that a family needs to be of one kind; otherwise `Unsupported`."""
    if not isinstance(value, kind):
        raise Unsupported(field, value)
    return value


def stack_of(spec: ModelSpec, side: str) -> StackSpec:
    """Returns the encoder or the decoder of a model that must have it."""
    return expect(getattr(spec, side), StackSpec, side)


def initial_stddev(spec: ModelSpec) -> float:
    """Returns the one standard deviation that a config has for all initial values."""
    return getattr(spec.init, "stddev", 0.02)


def first_id(config: Config, *names: str) -> int:
    """Returns the first token id in these fields; 0 if there is none.

    Ids beyond the vocabulary, which only models cut down for tests have, are passed over.
    """
    for name in names:
        ids = config.get(name)
        first = ids[0] if isinstance(ids, list | tuple) and ids else ids
        if isinstance(first, int) and 0 <= first < config["vocab_size"]:
            return first
    return 0
