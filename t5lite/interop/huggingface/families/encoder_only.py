"""The common part of BERT, RoBERTa, DistilBERT, ALBERT and ELECTRA."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from t5lite.interop.huggingface.families import family, labels, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.tensors import Tensor
from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    PoolerHeadSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

# What transformers' class of BERT's config fills in.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a `model_type`'s classes and tensors.

    Args:
      classes: what its architectures begin with.
      prefix: of the base model's tensors.
      sublayers: of a layer's modules; see `layer_names`.
      masked_lm: of that head: its layer, its norm, the logits' table and bias, aliases of the bias.
      layer: of the layers.
      pooler: of the base model's pooler.
      text_pooler: of the linear layer before a text's labels.
      classifier: of the linear layer that gives them.
      projection: of the layer from the embedding's width to that of the layers.
    """

    classes: str
    prefix: str
    sublayers: dict[str, Any]
    masked_lm: tuple[str, ...]
    layer: str = "encoder.layer"
    pooler: str = "pooler.dense"
    text_pooler: str = "classifier.dense"
    classifier: str = "classifier.out_proj"
    projection: str = "embeddings_project"


def check(config: family.Config) -> None:
    """Raises an InputError for options of a config that no spec expresses."""
    family.check_fields(
        config,
        position_embedding_type=("absolute", None),
        is_decoder=(False, None),
        add_cross_attention=(False, None),
    )


def stack(
    config: family.Config,
    num_layers: int,
    *,
    num_blocks: int = 1,
    shared: bool = False,
    offset: int = 0,
) -> StackSpec:
    """Returns the encoder of a config.

    Args:
      config: with the defaults filled in.
      num_layers: in all.
      num_blocks: in the repeating pattern, all alike.
      shared: whether its turns have the same parameters.
      offset: rows of the positions' table before the first position.
    """
    embed, num_heads = config["hidden_size"], config["num_attention_heads"]
    norm = LayerNormSpec(config["layer_norm_eps"])
    name = activation(config["hidden_act"], "hidden_act")
    block = TransformerBlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(config["intermediate_size"], name, use_bias=True),
        norm=norm,
        norm_placement="after",
    )
    return StackSpec(
        num_layers,
        (block,) * num_blocks,
        causal=False,
        shared_layers=shared,
        position_embedding=LearnedPositionsSpec(config["max_position_embeddings"] - offset, offset),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=float(config["hidden_dropout_prob"]),
    )


def masked_lm_head(config: family.Config, name: str) -> tuple[MaskedLMHeadSpec]:
    """Returns the masked-LM head of a config, with the activation of that name.

    Raises:
      InputError: if its logits have a table of their own.
    """
    family.check_fields(config, tie_word_embeddings=(True, None))
    return (MaskedLMHeadSpec(name, LayerNormSpec(config["layer_norm_eps"])),)


def fields(
    spec: ModelSpec,
    classes: str,
    *,
    suffixes: Mapping[type, str] = MappingProxyType({}),
    rate: str = "classifier_dropout",
) -> dict[str, Any]:
    """Returns the fields of a config that these families share.

    Args:
      spec: of the model.
      classes: what its architectures begin with.
      suffixes: how they end with heads that some families alone have.
      rate: the field of the dropout rate before a head's linear layer.
    """
    encoder, head = family.stack_of(spec, "encoder"), spec.heads[-1] if spec.heads else None
    block, positions = encoder.blocks[0], _positions(encoder)
    mlp = family.expect(block.mlp, MlpSpec, "mlp")
    norm = family.expect(block.norm, LayerNormSpec, "norm")
    suffixes = {MaskedLMHeadSpec: "ForMaskedLM", **labels.SUFFIXES, **suffixes}
    content = {
        "architectures": [classes + suffixes.get(type(head), "Model")],
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "embedding_size": spec.embedding_size or spec.embed,
        "hidden_size": spec.embed,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": mlp.hidden,
        "hidden_act": activation_name(mlp.activation),
        "hidden_dropout_prob": encoder.dropout_rate,
        "attention_probs_dropout_prob": encoder.dropout_rate,
        "max_position_embeddings": positions.max_length + positions.offset,
        "type_vocab_size": spec.num_token_types,
        "initializer_range": family.initial_stddev(spec),
        "layer_norm_eps": norm.epsilon,
        "pad_token_id": positions.offset - 1 if positions.offset else 0,
    }
    if (dropout_rate := getattr(head, "dropout_rate", None)) is not None:
        content[rate] = dropout_rate
    return content if head is None else content | labels.fields(head)


def _positions(encoder: StackSpec) -> LearnedPositionsSpec:
    return family.expect(encoder.position_embedding, LearnedPositionsSpec, "position_embedding")


def tensors(
    spec: ModelSpec, names: Names, layer_name: Callable[[int], str] | None = None
) -> list[Tensor]:
    """Returns the tensors of a spec but for heads that one family alone has.

    Args:
      spec: of the model.
      names: of its family.
      layer_name: the name of a layer by its number, if it is not `names.layer` and the number.
    """
    encoder, embed = family.stack_of(spec, "encoder"), spec.embed
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
    encoder, width = family.stack_of(spec, "encoder"), spec.embedding_size or spec.embed
    positions, name = _positions(encoder), f"{names.prefix}embeddings"
    result = modules.table(
        f"{name}.word_embeddings.weight", "token_embedding", spec.vocab, width, aliases=aliases
    )
    path, rows = "encoder/position_embedding", positions.max_length + positions.offset
    result += modules.table(f"{name}.position_embeddings.weight", path, rows, width)
    if spec.num_token_types is not None:
        types = (f"{name}.token_type_embeddings.weight", "token_type_embedding")
        result += modules.table(*types, spec.num_token_types, width)
    norm = family.expect(encoder.embedding_norm, LayerNormSpec, "embedding_norm")
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
