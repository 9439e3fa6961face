"""ALBERT."""

import dataclasses
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import labels, narrow_embedding
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.huggingface.families.family import Config, Family
from t5lite.interop.huggingface.families.modules import linear
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    ClassificationHeadSpec,
    HeadSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

NAMES = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}
KNOWN = (
    "ForMaskedLM",
    "ForPreTraining",
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
# What transformers' config class fills in.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "classifier_dropout_prob": 0.1,
}


def spec(config: Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS, **config}
    narrow_embedding.check(config)
    turns, groups = config["num_hidden_layers"], config["num_hidden_groups"]
    if groups not in (1, turns):
        raise InputError(
            f"num_hidden_groups = {groups} is not modelled; 1 (all layers are one) and "
            f"num_hidden_layers = {turns} (all are their own) are"
        )
    inner = config["inner_group_num"]
    return ModelSpec(
        family="albert",
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        embedding_size=config["embedding_size"],
        encoder=narrow_embedding.stack(config, turns * inner, num_blocks=inner, shared=groups == 1),
        heads=heads(config, source),
        num_token_types=config["type_vocab_size"],
        init=TruncatedNormalInitSpec(config.get("initializer_range", 0.02)),
    )


def heads(config: Config, source: Source) -> tuple[HeadSpec, ...]:
    """Returns the heads of a config's architecture."""
    names = config.get("architectures") or ["AlbertForMaskedLM"]
    suffix = names[0].removeprefix("Albert")
    if suffix not in KNOWN:
        known = ", ".join(f"Albert{each}" for each in KNOWN)
        raise InputError(f"architectures = {names!r} is not modelled; those that are: {known}")
    dropout_rate = config["classifier_dropout_prob"]
    if dropout_rate is None:
        dropout_rate = config["hidden_dropout_prob"]
    if suffix == "Model":
        return (PoolerHeadSpec(),) if "albert.pooler.weight" in source.tensors() else ()
    if suffix == "ForTokenClassification":
        return (labels.token_head(config, dropout_rate=dropout_rate),)
    if suffix == "ForQuestionAnswering":
        return (labels.spans_head(config),)
    if suffix == "ForSequenceClassification":
        return (labels.text_head(config, dropout_rate=dropout_rate),)
    masked = narrow_embedding.masked_lm_head(config, activation(config["hidden_act"], "hidden_act"))
    if suffix == "ForMaskedLM":
        return (masked,)
    # Which of two segments was first.
    return masked, labels.text_head(config, dropout_rate=dropout_rate)


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    found, encoder = narrow_embedding.fields(spec), spec.encoder
    assert encoder is not None
    kinds = {type(head): head for head in spec.heads}
    suffix = "ForMaskedLM" if MaskedLMHeadSpec in kinds else "Model"
    for kind, head in kinds.items():
        if kind in labels.SUFFIXES:
            both = MaskedLMHeadSpec in kinds and kind is ClassificationHeadSpec
            suffix = "ForPreTraining" if both else labels.SUFFIXES[kind]
            found |= labels.fields(head)
            if hasattr(head, "dropout_rate"):
                found["classifier_dropout_prob"] = head.dropout_rate
    inner = len(encoder.blocks)
    turns = encoder.num_layers // inner
    return found | {
        "architectures": [f"Albert{suffix}"],
        "num_hidden_layers": turns,
        "num_hidden_groups": 1 if encoder.shared_layers else turns,
        "inner_group_num": inner,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    encoder, kinds = spec.encoder, {type(head) for head in spec.heads}
    assert encoder is not None
    masked = MaskedLMHeadSpec in kinds
    found = narrow_embedding.embedding_tensors(
        spec,
        "albert.",
        projection="encoder.embedding_hidden_mapping_in",
        aliases=("predictions.decoder.weight",) if masked else (),
    )
    inner = len(encoder.blocks)
    num_layers = inner if encoder.shared_layers else encoder.num_layers
    for layer in range(num_layers):
        place, index = encoder.place(layer)
        group, number = divmod(layer, inner)
        found += narrow_embedding.layer_tensors(
            f"albert.encoder.albert_layer_groups.{group}.albert_layers.{number}",
            f"encoder/{place}",
            encoder.every_block[layer],
            names=NAMES,
            embed=spec.embed,
            layer=index,
        )
    if masked:
        name = "predictions"
        found += narrow_embedding.masked_lm_tensors(
            spec, name, f"{name}.bias", f"{name}.decoder.bias"
        )
    if PoolerHeadSpec in kinds:
        sizes = (spec.embed, spec.embed)
        found += linear("albert.pooler", "pooler_head/dense", *sizes, use_bias=True)
    for head in spec.heads:
        for tensor in labels.tensors(head, spec.embed, pooler="albert.pooler"):
            if masked and tensor.name.startswith("classifier."):
                tensor = dataclasses.replace(tensor, name=f"sop_classifier.{tensor.name}")
            found.append(tensor)
    return found


FAMILIES = {
    "albert": Family(
        spec,
        config,
        tensors,
        prefix="albert.",
        base="AlbertModel",
        ignored=(
            # Buffers, and what the released files have beside the masked-LM head.
            r"albert\.embeddings\.(position_ids|token_type_ids)",
            r"albert\.pooler\.(weight|bias)",
            r"sop_classifier\.classifier\.(weight|bias)",
        ),
    )
}
