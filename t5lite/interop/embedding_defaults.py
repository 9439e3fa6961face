"""Default embedding options of a model: `embedding.json`."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5lite.data.paths import as_path, read_json, write_changed
from t5lite.errors import InputError, unknown

FILE = "embedding.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class EmbeddingDefaults:
    """Default embedding options of a model, `embedding.json`.

    Attributes:
      prompts: texts to prepend, by name: `{"query": "query: "}`.
      default_prompt: the name of the prompt where none is named; None for none.
      includes_prompt: whether the tokens of a prompt are pooled.
      max_length: most tokens of a text, special ones included; None for the model's positions.
      refusal: why `embed` refuses the model; None if it does not.
    """

    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    includes_prompt: bool = True
    max_length: int | None = None
    refusal: str | None = None

    def prompt(self, name: str | None) -> str:
        """Returns the text of a prompt (None: the default one's, or ""); InputError if unknown."""
        if name is None:
            return self.prompts.get(self.default_prompt or "", "")
        if name not in self.prompts:
            if not self.prompts:
                raise InputError(
                    f"prompt_name = {name!r}: the model has no prompts; leave it out",
                    field="prompt_name",
                )
            raise unknown("prompt_name", name, self.prompts)
        return self.prompts[name]


def read_embedding(folder: Any) -> EmbeddingDefaults | None:
    """Returns `embedding.json`, None if absent; InputError if damaged or of an unknown format."""
    path = as_path(folder) / FILE
    if not path.exists():
        return None
    return read_json(
        path, lambda content: EmbeddingDefaults(**content), version=_FORMAT, key="format"
    )


def save_embedding(folder: Any, defaults: EmbeddingDefaults | None) -> None:
    """Writes `embedding.json`; None: writes nothing."""
    if defaults is not None:
        content = {"format": _FORMAT, **dataclasses.asdict(defaults)}
        write_changed(as_path(folder) / FILE, (json.dumps(content, indent=2) + "\n").encode())
