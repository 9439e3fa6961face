"""The common part of BERT, RoBERTa, DistilBERT, ALBERT and ELECTRA."""

import dataclasses
from collections.abc import Callable
from typing import Any

from t5lite.interop.huggingface.families import labels, modules
from t5lite.interop.huggingface.families.activations import ACTIVATION
from t5lite.interop.huggingface.families.fields import (
    Field,
    Fields,
    Foreign,
    check_fields,
    expect,
    stack_of,
)
from t5lite.interop.tensors import Tensor
from t5lite.layers import (
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

FIELDS: Fields = {
    "vocab_size": Field(30522, "vocab"),
    "hidden_size": Field(768, "embed"),
    "num_hidden_layers": Field(12, "stack.num_layers"),
    "num_attention_heads": Field(12, "attention.num_heads"),
    "intermediate_size": Field(3072, "mlp.hidden"),
    "hidden_act": Field("gelu", "mlp.activation", ACTIVATION),
    "hidden_dropout_prob": Field(0.1, "stack.dropout_rate"),
    "classifier_dropout": Field(None, kind=float),
    "max_position_embeddings": Field(512),
    "type_vocab_size": Field(2, least=0, nullable=True),
    "initializer_range": Field(0.02, "init.stddev"),
    "layer_norm_eps": Field(1e-12, "norm.epsilon"),
    "tie_word_embeddings": Field(True),
    "pad_token_id": Field(0, nullable=True, least=0),
}


def with_defaults(**defaults: Any) -> dict[str, Field]:
    """Returns `FIELDS` with other defaults, those of another class."""
    return {
        name: field._replace(default=defaults[name]) if name in defaults else field
        for name, field in FIELDS.items()
    }


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a `model_type`'s tensors.

    Args:
      prefix: of the base model's tensors.
      sublayers: of a layer's modules; see `layer_names`.
      masked_lm: of that head: its layer, its norm, the logits' table and bias, aliases of the bias.
      layer: of the layers.
      pooler: of the base model's pooler.
      text_pooler: of the linear layer before a text's labels.
      classifier: of the linear layer that gives them.
      projection: of the layer from the embedding's width to that of the layers.
    """

    prefix: str
    sublayers: dict[str, Any]
    masked_lm: tuple[str, ...]
    layer: str = "encoder.layer"
    pooler: str = "pooler.dense"
    text_pooler: str = "classifier.dense"
    classifier: str = "classifier.out_proj"
    projection: str = "embeddings_project"


def spec_parts(
    foreign: Foreign,
    init: Any,
    *,
    num_blocks: int = 1,
    shared: bool = False,
    offset: int = 0,
) -> dict[str, Any]:
    """Returns ModelSpec's fields of a config.

    Args:
      foreign: whose `num_hidden_layers` repeat the pattern.
      init: kind of the initial values' distribution, by their standard deviation.
      num_blocks: in the repeating pattern, all alike.
      shared: whether its repeats have the same parameters.
      offset: rows of the positions' table before the first position.

    Raises:
      InputError: for options that no spec expresses.
    """
    config, absent = foreign.config, (False, None)
    check_fields(
        config,
        position_embedding_type=("absolute", None),
        is_decoder=absent,
        add_cross_attention=absent,
    )
    stack, norm = foreign.parts["stack"], norm_of(foreign)
    block = TransformerBlockSpec(
        foreign.attention(use_bias=True),
        foreign.mlp(use_bias=True),
        norm=norm,
        norm_placement="after",
    )
    encoder = StackSpec(
        stack["num_layers"] * num_blocks,
        (block,) * num_blocks,
        causal=False,
        shared_layers=shared,
        position_embedding=LearnedPositionsSpec(config["max_position_embeddings"] - offset, offset),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=stack["dropout_rate"],
    )
    return {
        "encoder": encoder,
        "num_token_types": config["type_vocab_size"] or None,
        "init": init(**foreign.parts["init"]),
    }


def norm_of(foreign: Foreign) -> LayerNormSpec:
    """Returns the one kind of norm in a model."""
    return LayerNormSpec(**foreign.parts["norm"])


def masked_lm_head(foreign: Foreign, name: str | None = None) -> tuple[MaskedLMHeadSpec]:
    """Returns the masked-LM head of a config, with the layers' activation or another.

    Raises:
      InputError: if its logits have a table apart from the embedding's.
    """
    check_fields(foreign.config, tie_word_embeddings=(True, None))
    return (MaskedLMHeadSpec(name or foreign.parts["mlp"]["activation"], norm_of(foreign)),)


def pooled(foreign: Foreign, weight: str) -> tuple[HeadSpec, ...]:
    """Returns the head of a base model: a pooler if its weight is there."""
    return (PoolerHeadSpec(),) if weight in foreign.source.tensors() else ()


def fields(spec: ModelSpec, rate: str = "classifier_dropout") -> dict[str, Any]:
    """Returns the fields of a config beside `FIELDS` that these families share.

    Args:
      spec: of the model.
      rate: the field of the dropout rate before a head's linear layer.
    """
    encoder, head = stack_of(spec, "encoder"), spec.heads[-1] if spec.heads else None
    positions = positions_of(encoder)
    expect(encoder.blocks[0].norm, LayerNormSpec, "norm")
    content = {
        "type_vocab_size": spec.num_token_types,
        "attention_probs_dropout_prob": encoder.dropout_rate,
        "max_position_embeddings": positions.max_length + positions.offset,
        "pad_token_id": positions.offset - 1 if positions.offset else 0,
    }
    if (dropout_rate := getattr(head, "dropout_rate", None)) is not None:
        content[rate] = dropout_rate
    return content


def positions_of(encoder: StackSpec) -> LearnedPositionsSpec:
    """Returns the table of positions that an encoder must have."""
    return expect(encoder.position_embedding, LearnedPositionsSpec, "position_embedding")


def tensors(
    spec: ModelSpec, names: Names, layer_name: Callable[[int], str] | None = None
) -> list[Tensor]:
    """Returns the tensors of a spec but for heads that one family alone has.

    Args:
      spec: of the model.
      names: of its family.
      layer_name: the name of a layer by its number, if it is not `names.layer` and the number.
    """
    encoder, embed = stack_of(spec, "encoder"), spec.embed
    dense, norm, table, bias, *aliases = names.masked_lm
    masked = [head for head in spec.heads if isinstance(head, MaskedLMHeadSpec)]
    result = _embedding_tensors(spec, names, aliases=(table,) if masked else ())
    layer_name = layer_name or f"{names.prefix}{names.layer}.{{}}".format
    result += modules.stack_tensors(encoder, "encoder", embed, layer_name, names.sublayers)
    for masked_lm in masked:
        width = spec.embedding_size or embed
        result += modules.linear(dense, "lm_head/dense", embed, width, use_bias=True)
        result += modules.norm(norm, "lm_head/norm", masked_lm.norm, width)
        vector = modules.vector(bias, "lm_head/bias", spec.vocab)
        result.append(dataclasses.replace(vector, aliases=tuple(aliases)))
    for head in spec.heads:
        if isinstance(head, PoolerHeadSpec):
            name = f"{names.prefix}{names.pooler}"
            result += modules.linear(name, "pooler_head/dense", embed, embed, use_bias=True)
        result += labels.tensors(head, embed, pooler=names.text_pooler, classifier=names.classifier)
    return result


def _embedding_tensors(spec: ModelSpec, names: Names, *, aliases: tuple[str, ...]) -> list[Tensor]:
    """Returns the tensors before the first layer; `aliases` are those of the token embedding."""
    encoder, width = stack_of(spec, "encoder"), spec.embedding_size or spec.embed
    positions, name = positions_of(encoder), f"{names.prefix}embeddings"
    result = modules.table(
        f"{name}.word_embeddings.weight", "token_embedding", spec.vocab, width, aliases=aliases
    )
    path, rows = "encoder/position_embedding", positions.max_length + positions.offset
    result += modules.table(f"{name}.position_embeddings.weight", path, rows, width)
    if spec.num_token_types is not None:
        types = (f"{name}.token_type_embeddings.weight", "token_type_embedding")
        result += modules.table(*types, spec.num_token_types, width)
    norm = expect(encoder.embedding_norm, LayerNormSpec, "embedding_norm")
    result += modules.norm(f"{name}.LayerNorm", "encoder/embedding_norm", norm, width)
    if spec.embedding_size is not None:
        name, path = f"{names.prefix}{names.projection}", "encoder/embedding_projection"
        result += modules.linear(name, path, width, spec.embed, use_bias=True)
    return result


def layer_names(**names: str) -> dict[str, Any]:
    """Returns the names of a layer's modules, as `modules.stack_tensors` takes them.

    Args:
      **names: query, key, value, output, attention_norm, up, down, mlp_norm.
    """
    groups = {"attention": ("query", "key", "value", "output"), "mlp": ("up", "down")}
    grouped = {
        part: {name: names.pop(name) for name in members} for part, members in groups.items()
    }
    return grouped | names
