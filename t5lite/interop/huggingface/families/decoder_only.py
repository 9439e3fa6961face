"""The common part of decoder-only families."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from t5lite.interop.huggingface.families import family, labels, modules
from t5lite.interop.huggingface.families.family import Config, Heads, no_heads
from t5lite.interop.tensors import Source, Tensor
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


def model_spec(
    config: Config, source: Source, classes: str, heads: Mapping[str, Heads], **parts: Any
) -> ModelSpec:
    """Returns a model of these parts, with the heads of its config's architecture."""
    return ModelSpec(
        family=config["model_type"],
        vocab=config["vocab_size"],
        heads=family.heads_of(classes, heads, config, source),
        start_id=family.first_id(config, "bos_token_id", "eos_token_id"),
        **parts,
    )


def fields(spec: ModelSpec, classes: str, lm: str = "ForCausalLM") -> dict[str, Any]:
    """Returns the fields of a config that `heads` and `model_spec` read."""
    content: dict[str, Any] = {
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "initializer_range": family.initial_stddev(spec),
        "bos_token_id": spec.start_id,
    }
    if not spec.heads:  # with a head the family's default is best
        return content | {"architectures": [f"{classes}Model"]}
    head = spec.heads[0]
    if type(head) not in labels.SUFFIXES:
        content["tie_word_embeddings"] = isinstance(head, LMHeadSpec) and head.tied
        return content | {"architectures": [classes + lm]}
    if isinstance(head, TokenLabelsHeadSpec):
        content["classifier_dropout"] = head.dropout_rate
    architecture = classes + labels.SUFFIXES[type(head)]
    return content | {"architectures": [architecture], **labels.fields(head)}


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
    decoder, embed = family.stack_of(spec, "decoder"), spec.embed
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


def epsilon(norm: NormSpec) -> float:
    """Returns a norm's epsilon; 0 for one of the user's own, which no config can express."""
    return getattr(norm, "epsilon", 0.0)
