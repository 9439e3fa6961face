"""The common part of decoder-only families."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from t5lite.interop.huggingface.families import labels, modules
from t5lite.interop.huggingface.families.family import no_heads
from t5lite.interop.huggingface.families.fields import Foreign, Heads, first_id, stack_of
from t5lite.interop.tensors import Tensor
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
    """Returns the token that a decoder reads first."""
    return first_id(foreign.config, "bos_token_id", "eos_token_id")


def fields(spec: ModelSpec) -> dict[str, Any]:
    """Returns the fields of a config that `heads` and `start_id` read."""
    content: dict[str, Any] = {"bos_token_id": spec.start_id}
    head = spec.heads[0] if spec.heads else None
    if isinstance(head, TokenLabelsHeadSpec):
        content["classifier_dropout"] = head.dropout_rate
    elif head is not None and type(head) not in labels.SUFFIXES:  # otherwise the default is best
        content["tie_word_embeddings"] = isinstance(head, LMHeadSpec) and head.tied
    return content


class Names(NamedTuple):
    """The names of a family's tensors.

    Attributes:
      table: of the token embedding.
      layer: of a layer, with `{}` for its number.
      final_norm: of the norm after the last layer.
      modules: of a layer's modules; see `modules.stack_tensors`.
      logits: of the logits' table, by versions of transformers.
      tagger: of the layer that gives tokens' labels.
    """

    table: str
    layer: str
    final_norm: str
    modules: Mapping[str, Any]
    logits: tuple[str, ...]
    tagger: str = "classifier"


def tensors(
    spec: ModelSpec,
    names: Names,
    *,
    attention: Callable[..., list[Tensor]] = modules.attention,
    mlp: Callable[..., list[Tensor]] = modules.mlp,
) -> list[Tensor]:
    """Returns the tensors of a spec; for `attention` and `mlp` see `modules.stack_tensors`."""
    decoder, embed = stack_of(spec, "decoder"), spec.embed
    tied = names.logits if modules.is_tied(spec) else ()
    result = modules.table(names.table, "token_embedding", spec.vocab, embed, aliases=tied)
    result += modules.stack_tensors(
        decoder,
        "decoder",
        embed,
        names.layer.format,
        names.modules,
        attention=attention,
        mlp=mlp,
        final_norm=names.final_norm,
    )
    for head in spec.heads:
        result += labels.tensors(head, embed, classifier="score", tagger=names.tagger)
    return result + modules.lm_head(spec, names.logits[0], aliases=names.logits[1:])
