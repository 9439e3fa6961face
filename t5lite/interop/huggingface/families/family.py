"""A family of Hugging Face models: tables and functions between configs and specs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.interop.huggingface.families import labels
from t5lite.interop.huggingface.families.fields import (
    Config,
    Field,
    Fields,
    Foreign,
    Heads,
    read,
    unsupported,
    write,
)
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import HeadSpec, LMHeadSpec, MaskedLMHeadSpec
from t5lite.models import ModelSpec


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Args:
      classes: prefix of its architectures' names.
      fields: of its config.
      heads: by the end of an architecture's name; the first is that of a config without any.
      spec_parts: returns ModelSpec's fields beside `fields` and `heads`.
      extra: returns the config's fields beside `fields`, or instead. It need not check what the
        family cannot express: `describe` compares the spec with the one read back.
      tensors: maps each tensor of a model with a head to parameters.
      lm: the end of the name of the architecture with logits.
      suffixes: of architectures with heads of this family alone.
      side: the stack that `fields` describe.
      prefix: of the base model's tensors in a file of a model with a head.
      also: another prefix, under which some of the family's models were saved.
      ignored: regular expressions of redundant names in files: buffers, heads that are left out.
      renamed: pairs of a regular expression and its replacement for names in older files.
    """

    classes: str
    fields: Fields
    heads: Mapping[str, Heads]
    spec_parts: Callable[[Foreign], dict[str, Any]]
    extra: Callable[[ModelSpec], dict[str, Any]]
    tensors: Callable[[ModelSpec], list[Tensor]]
    lm: str = "ForCausalLM"
    suffixes: Mapping[type[HeadSpec], str] = dataclasses.field(default_factory=dict)
    side: str = "decoder"
    prefix: str = ""
    also: str = ""
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def spec(self, config: Config, source: Source) -> ModelSpec:
        """Returns the spec of a config and its weights (ties); errors begin with a field."""
        config = {**{name: field.default for name, field in self.fields.items()}, **config}
        labels.check(config)
        foreign = read(self.fields, config, source)
        parts = self.spec_parts(foreign)
        heads = self.heads[self.suffix(config)](foreign)
        return ModelSpec(
            family=config["model_type"], **{"heads": heads, **foreign.parts["model"], **parts}
        )

    def suffix(self, config: Config) -> str:
        """Returns the end of a config's architecture; InputError for one outside `heads`."""
        architectures = [self.classes + suffix for suffix in self.heads]
        name = (config.get("architectures") or architectures)[0]
        for suffix in self.heads:
            if name in (self.classes + suffix, self.also and self.also + suffix):
                return suffix
        raise unsupported("architectures", [name], architectures)

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        head = spec.heads[0] if spec.heads else None
        suffixes = {LMHeadSpec: self.lm, MaskedLMHeadSpec: self.lm} | labels.SUFFIXES
        suffix = {**suffixes, **self.suffixes}.get(type(head), "Model")
        return {
            "architectures": [self.classes + suffix],
            "model_type": spec.family,
            **write(self.fields, spec, self.side),
            **(labels.fields(head) if head is not None else {}),
            **self.extra(spec),
        }

    @property
    def base(self) -> str:
        """The architecture without a head, whose files lack the prefix."""
        return f"{self.classes}Model"


def no_heads(foreign: Foreign) -> tuple[HeadSpec, ...]:
    del foreign
    return ()


def tokens(**ids: int | None) -> dict[str, Field]:
    """Returns the fields of token ids, which may also be null or lists."""
    return {f"{name}_token_id": Field(token, kind=object) for name, token in ids.items()}
