"""What a task needs of a model: a head, a vocabulary, finite numbers."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from t5lite.data import Vocabulary
from t5lite.errors import InputError
from t5lite.models import Model
from t5lite.objectives import Prompts


class Described(Protocol):
    """A model, and the files beside its parameters: `Loaded` is one."""

    @property
    def model(self) -> Model: ...
    @property
    def vocabulary(self) -> Vocabulary | None: ...
    @property
    def folder(self) -> Any: ...
    @property
    def prompts(self) -> Prompts: ...


def require(source: Any, *, head: str | None = None, to: str) -> Vocabulary:
    """Returns the vocabulary of a `source`; an InputError if it has none, or not the `head` that a
    task, `to` "score text", needs."""
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


def check_draft(draft: Any, loaded: Any) -> None:
    """Raises an InputError unless a draft is None, "prompt" or a loaded model that fits another."""
    if draft is None or draft == "prompt":
        return
    if not isinstance(draft, type(loaded)):
        raise InputError(f"draft = {draft!r}: must be a loaded model, or 'prompt'", field="draft")
    if draft.model.topology != loaded.model.topology:
        raise InputError(
            f"the draft is {draft.model.topology}, the model {loaded.model.topology}: both must be "
            "of one topology",
            field="draft",
        )
    theirs, ours = draft.vocabulary, loaded.engine.words
    alike = theirs is not None and theirs.fingerprint == ours.fingerprint
    if not alike or draft.spec.vocab != loaded.spec.vocab:
        raise InputError("the draft has another vocabulary than the model", field="draft")


def not_finite(numbers: str, *, params: Any, model: Model) -> InputError:
    """Returns the error of `numbers` ("the logits"), NaN or infinite; it names such a parameter."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return InputError(
                f"{numbers} are NaN or infinite: so is the parameter {name} of the model; load an "
                "earlier checkpoint, or convert the model again"
            )
    dtype = model.compute.dtype
    fix = "" if dtype == "float32" else "; load(..., compute=ComputeSpec(dtype='float32'))"
    return InputError(
        f"{numbers} are NaN or infinite, though all parameters are finite: activations overflow in "
        f"{dtype}{fix}"
    )
