"""The common part of decoder-only families."""

from typing import Any

from t5lite.interop.huggingface.families import fields, labels
from t5lite.interop.huggingface.families.family import no_heads
from t5lite.interop.huggingface.families.fields import Foreign, Heads
from t5lite.layers import LMHeadSpec, TokenLabelsHeadSpec
from t5lite.models import ModelSpec


def heads(
    lm: str = "ForCausalLM", *, softcap: str | None = None, spans: bool = True
) -> dict[str, Heads]:
    """Returns the heads of a family by architecture.

    Args:
      lm: the architecture with logits over the vocabulary.
      softcap: the field of a config that caps logits; None for none.
      spans: whether there is one for spans.
    """
    # Of the last token that is not padding.
    shape = {"pooling": "last", "pooler": False, "use_bias": False}
    table: dict[str, Heads] = {
        lm: lambda foreign: (
            LMHeadSpec(
                tied=bool(foreign.config["tie_word_embeddings"]),
                softcap=foreign.config[softcap] if softcap else None,
            ),
        ),
        "Model": no_heads,
        **labels.makers(_token_rate, text_rate=lambda _: 0.0, **shape),
    }
    if not spans:
        del table["ForQuestionAnswering"]
    return table


def _token_rate(foreign: Foreign) -> float:
    rates = (foreign.config.get(name) for name in ("classifier_dropout", "hidden_dropout"))
    return next((rate for rate in rates if rate is not None), 0.1)


def start_id(foreign: Foreign) -> int:
    return fields.first_id(foreign.config, "bos_token_id", "eos_token_id")


def extra(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config fields that `heads` and `start_id` read."""
    content: dict[str, Any] = {"bos_token_id": spec.start_id}
    head = spec.heads[0] if spec.heads else None
    if isinstance(head, TokenLabelsHeadSpec):
        content["classifier_dropout"] = head.dropout_rate
    elif head is not None and type(head) not in labels.SUFFIXES:  # otherwise the default is best
        content["tie_word_embeddings"] = isinstance(head, LMHeadSpec) and head.tied
    return content


LABELS = labels.names(classifier="score")
