"""What a family of Hugging Face models is: three functions between their files and our specs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.tensors import Source, Tensor
from t5lite.models import ModelSpec

Config = Mapping[str, Any]


class Unsupported(InputError):
    """A part of a spec of a kind that a family's files have no place for.

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
      spec: the content of `config.json`, and the weights (some configs leave to them what is tied),
        to a spec whose `family` is the `model_type`.
      config: a spec to the content of `config.json`. What the family cannot express needs no check:
        `save` compares the spec with the one that comes back.
      tensors: where each tensor of a model with a head stands among the parameters.
      prefix: of the base model's tensors in a file of a model with a head.
      base: the architecture without a head, whose files lack the prefix.
      ignored: regular expressions of names that files may have although the spec says all that is
        in them: buffers, and heads that are left out.
      renamed: pairs of a regular expression and what becomes of it in names of older files.
    """

    spec: Callable[[Config, Source], ModelSpec]
    config: Callable[[ModelSpec], dict[str, Any]]
    tensors: Callable[[ModelSpec], list[Tensor]]
    prefix: str = ""
    base: str = ""
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()


def initial_stddev(spec: ModelSpec) -> float:
    """Returns the one standard deviation that a config has for all initial values."""
    return getattr(spec.init, "stddev", 0.02)
