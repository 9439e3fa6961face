"""The common part of BERT, RoBERTa, DistilBERT, ALBERT and ELECTRA."""

import dataclasses
from typing import Any

from t5lite.interop.huggingface.families import family, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.tensors import Tensor
from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec


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


def fields(spec: ModelSpec) -> dict[str, Any]:
    """Returns the fields of a config that these families share."""
    encoder = family.stack_of(spec, "encoder")
    block = encoder.blocks[0]
    mlp, norm = (
        family.expect(block.mlp, MlpSpec, "mlp"),
        family.expect(block.norm, LayerNormSpec, "norm"),
    )
    positions = family.expect(
        encoder.position_embedding, LearnedPositionsSpec, "position_embedding"
    )
    return {
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


def embedding_tensors(
    spec: ModelSpec, prefix: str, *, projection: str = "", aliases: tuple[str, ...] = ()
) -> list[Tensor]:
    """Returns the tensors before the first layer.

    Args:
      spec: of the model.
      prefix: of the base model's tensors.
      projection: the name of the layer from the embedding's width to that of the layers.
      aliases: other names of the token embedding.
    """
    encoder, width = family.stack_of(spec, "encoder"), spec.embedding_size or spec.embed
    positions = family.expect(
        encoder.position_embedding, LearnedPositionsSpec, "position_embedding"
    )
    names, rows = f"{prefix}embeddings", positions.max_length + positions.offset
    table = (f"{names}.word_embeddings.weight", "token_embedding", spec.vocab, width)
    result = modules.table(*table, aliases=aliases)
    path = "encoder/position_embedding"
    result += modules.table(f"{names}.position_embeddings.weight", path, rows, width)
    if spec.num_token_types is not None:
        types = (f"{names}.token_type_embeddings.weight", "token_type_embedding")
        result += modules.table(*types, spec.num_token_types, width)
    norm = family.expect(encoder.embedding_norm, LayerNormSpec, "embedding_norm")
    result += modules.norm(f"{names}.LayerNorm", "encoder/embedding_norm", norm, width)
    if spec.embedding_size is not None:
        path = "encoder/embedding_projection"
        result += modules.linear(f"{prefix}{projection}", path, width, spec.embed, use_bias=True)
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


def masked_lm_tensors(
    spec: ModelSpec, dense: str, norm: str, bias: str, *aliases: str
) -> list[Tensor]:
    """Returns the tensors of a masked-LM head, if the model has one.

    Args:
      spec: of the model.
      dense, norm, bias: names of its layer, of its norm, and of the logits' bias.
      *aliases: other names of the bias.
    """
    width, result = spec.embedding_size or spec.embed, list[Tensor]()
    for head in spec.heads:
        if isinstance(head, MaskedLMHeadSpec):
            result += modules.linear(dense, "lm_head/dense", spec.embed, width, use_bias=True)
            result += modules.norm(norm, "lm_head/norm", head.norm, width)
            vector = modules.vector(bias, "lm_head/bias", spec.vocab)
            result.append(dataclasses.replace(vector, aliases=aliases))
    return result
