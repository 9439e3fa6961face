"""The common part of decoder-only families."""

from typing import Any

from t5lite.interop.huggingface.families import labels
from t5lite.interop.huggingface.families.family import Config, Heads, no_heads
from t5lite.interop.tensors import Tensor
from t5lite.layers import LMHeadSpec, NormSpec, TokenLabelsHeadSpec
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
    # Of the last token that is no padding.
    shape = {"pooling": "last", "pooler": False, "use_bias": False}
    table: dict[str, Heads] = {
        lm: lambda config, _: (
            LMHeadSpec(
                tied=bool(config["tie_word_embeddings"]),
                softcap=config[softcap] if softcap else None,
            ),
        ),
        "Model": no_heads,
        **labels.makers(_token_rate, text_rate=lambda config: 0.0, **shape),
    }
    if not spans:
        del table["ForQuestionAnswering"]
    return table


def _token_rate(config: Config) -> float:
    rates = (config.get(name) for name in ("classifier_dropout", "hidden_dropout"))
    return next((rate for rate in rates if rate is not None), 0.1)


def head_fields(spec: ModelSpec, classes: str, lm: str = "ForCausalLM") -> dict[str, Any]:
    """Returns the fields of a config that `heads` reads."""
    if not spec.heads:
        return {"architectures": [f"{classes}Model"]}  # with a head the family's default is best
    head = spec.heads[0]
    if type(head) in labels.SUFFIXES:
        name = classes + labels.SUFFIXES[type(head)]
        content = {"architectures": [name], **labels.fields(head)}
        if isinstance(head, TokenLabelsHeadSpec):
            content["classifier_dropout"] = head.dropout_rate
        return content
    tied = isinstance(head, LMHeadSpec) and head.tied
    return {"architectures": [classes + lm], "tie_word_embeddings": tied}


def labelled_tensors(spec: ModelSpec, *, tagger: str) -> list[Tensor]:
    """Returns the tensors of heads that have labels; `tagger` is the name of that for tokens."""
    result: list[Tensor] = []
    for head in spec.heads:
        result += labels.tensors(head, spec.embed, classifier="score", tagger=tagger)
    return result


def epsilon(norm: NormSpec) -> float:
    """Returns a norm's epsilon; 0 for one of the user's own, which no config can express."""
    return getattr(norm, "epsilon", 0.0)
