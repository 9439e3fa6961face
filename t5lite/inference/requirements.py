"""What a model must have for a task: its head and a vocabulary."""

from typing import Any, Protocol

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.objectives import Prompts


class Described(Protocol):
    """A model without parameters, and what lies beside it: `Loaded` is one."""

    @property
    def model(self) -> Model: ...
    @property
    def vocabulary(self) -> Vocabulary | None: ...
    @property
    def folder(self) -> Any: ...
    @property
    def prompts(self) -> Prompts: ...


def require(source: Any, *, head: str | None = None, to: str) -> Vocabulary:
    """Returns the vocabulary of a model.

    Args:
      source: with `model`, `vocabulary` and `folder`.
      head: that the task needs; None for none.
      to: the task, such as "score text".

    Raises:
      InputError: no vocabulary, or no such head.
    """
    heads = source.model.heads
    if head is not None and head not in heads:
        raise InputError(
            f"{source.folder} holds a model without a head for tokens, which cannot {to}; it has "
            f"{', '.join(heads) or 'none'}"
        )
    if source.vocabulary is None:
        raise InputError(
            f"no tokenizer in {source.folder}: neither vocabulary/ nor a Hugging Face tokenizer; "
            "copy them there, or set load(folder, vocabulary=...)"
        )
    return source.vocabulary
