"""What ALBERT and ELECTRA have in common: BERTs whose token embedding may have another width."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.family import Config, Unsupported, initial_stddev
from t5lite.interop.tensors import Tensor
from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec


def check(config: Config) -> None:
    """Raises an InputError for options of a config that are not modelled."""
    plain: dict[str, tuple[Any, ...]] = {
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
    }
    for field, allowed in plain.items():
        if config.get(field) not in allowed:
            raise InputError(f"{field} = {config[field]!r} is not modelled; {allowed[0]!r} is")


def stack(config: Config, num_layers: int, *, num_blocks: int = 1, shared: bool) -> StackSpec:
    """Returns the encoder of a config.

    Args:
      config: with the defaults filled in.
      num_layers: in all.
      num_blocks: in the repeating pattern, all alike.
      shared: whether its turns have the same parameters.
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
        position_embedding=LearnedPositionsSpec(config["max_position_embeddings"]),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=float(config["hidden_dropout_prob"]),
    )


def masked_lm_head(config: Config, name: str) -> MaskedLMHeadSpec:
    """Returns the masked-LM head of a config, with the activation of that name.

    Raises:
      InputError: if its logits have a table of their own.
    """
    if config.get("tie_word_embeddings", True) is False:
        raise InputError("tie_word_embeddings = False is not modelled for masked language models")
    return MaskedLMHeadSpec(name, LayerNormSpec(config["layer_norm_eps"]))


def fields(spec: ModelSpec) -> dict[str, Any]:
    """Returns what both families' configs hold."""
    encoder = spec.encoder
    if encoder is None or spec.decoder is not None:
        raise InputError(f"family = {spec.family!r} is of encoders alone, not {spec.topology}")
    block, positions = encoder.blocks[0], encoder.position_embedding
    if not isinstance(block.mlp, MlpSpec):
        raise Unsupported("mlp", block.mlp)
    if not isinstance(block.norm, LayerNormSpec):
        raise Unsupported("norm", block.norm)
    if not isinstance(positions, LearnedPositionsSpec):
        raise Unsupported("position_embedding", positions)
    return {
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "embedding_size": spec.embedding_size or spec.embed,
        "hidden_size": spec.embed,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": block.mlp.hidden,
        "hidden_act": activation_name(block.mlp.activation),
        "hidden_dropout_prob": encoder.dropout_rate,
        "attention_probs_dropout_prob": encoder.dropout_rate,
        "max_position_embeddings": positions.max_length,
        "type_vocab_size": spec.num_token_types,
        "initializer_range": initial_stddev(spec),
        "layer_norm_eps": block.norm.epsilon,
        "pad_token_id": 0,
    }


def embedding_tensors(
    spec: ModelSpec, prefix: str, *, projection: str, aliases: tuple[str, ...]
) -> list[Tensor]:
    """Returns the tensors before the first layer.

    Args:
      spec: of the model.
      prefix: of the base model's tensors.
      projection: the name of the layer from the embedding's width to that of the layers.
      aliases: other names of the token embedding.
    """
    encoder, width = spec.encoder, spec.embedding_size or spec.embed
    assert encoder is not None
    assert encoder.embedding_norm is not None
    if not isinstance(encoder.position_embedding, LearnedPositionsSpec):
        raise Unsupported("position_embedding", encoder.position_embedding)
    names = f"{prefix}embeddings"
    table = (f"{names}.word_embeddings.weight", "token_embedding", spec.vocab, width)
    found = modules.table(*table, aliases=aliases)
    rows = encoder.position_embedding.max_length
    path = "encoder/position_embedding"
    found += modules.table(f"{names}.position_embeddings.weight", path, rows, width)
    if spec.num_token_types is not None:
        types = (f"{names}.token_type_embeddings.weight", "token_type_embedding")
        found += modules.table(*types, spec.num_token_types, width)
    norm = (f"{names}.LayerNorm", "encoder/embedding_norm", encoder.embedding_norm, width)
    found += modules.norm(*norm)
    if spec.embedding_size is not None:
        path = "encoder/embedding_projection"
        found += modules.linear(f"{prefix}{projection}", path, width, spec.embed, use_bias=True)
    return found


def layer_tensors(
    name: str,
    path: str,
    block: TransformerBlockSpec,
    *,
    names: Mapping[str, str],
    embed: int,
    layer: Any,
) -> list[Tensor]:
    """Returns the tensors of a layer.

    Args:
      name: of the layer.
      path: of ours.
      block: of it.
      names: of its modules: query, key, value, output, attention_norm, up, down, mlp_norm.
      embed: width of the residual stream.
      layer: see `Part`.
    """
    parts = {part: f"{name}.{each}" for part, each in names.items()}
    norm = functools.partial(modules.norm, spec=block.norm, size=embed, layer=layer)
    if not isinstance(block.mlp, MlpSpec):
        raise Unsupported("mlp", block.mlp)
    return [
        *modules.attention(parts, f"{path}/attention", block.attention, embed, layer=layer),
        *norm(parts["attention_norm"], f"{path}/attention_norm"),
        *modules.mlp(parts, f"{path}/mlp", block.mlp, embed, layer=layer),
        *norm(parts["mlp_norm"], f"{path}/mlp_norm"),
    ]


def masked_lm_tensors(spec: ModelSpec, name: str, bias: str, *aliases: str) -> list[Tensor]:
    """Returns the tensors of a masked-LM head: `name`'s layers, and the `bias` of logits."""
    width = spec.embedding_size or spec.embed
    (head,) = (each for each in spec.heads if isinstance(each, MaskedLMHeadSpec))
    vector = modules.vector(bias, "lm_head/bias", spec.vocab)
    return [
        *modules.linear(f"{name}.dense", "lm_head/dense", spec.embed, width, use_bias=True),
        *modules.norm(f"{name}.LayerNorm", "lm_head/norm", head.norm, width),
        dataclasses.replace(vector, aliases=aliases),
    ]
