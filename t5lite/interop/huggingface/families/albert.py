"""ALBERT."""

import dataclasses
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, family, labels
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    ClassificationHeadSpec,
    HeadSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

NAMES = encoder_only.Names(
    "Albert",
    "albert.",
    encoder_only.layer_names(
        query="attention.query",
        key="attention.key",
        value="attention.value",
        output="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        down="ffn_output",
        mlp_norm="full_layer_layer_norm",
    ),
    (
        "predictions.dense",
        "predictions.LayerNorm",
        "predictions.decoder.weight",
        "predictions.bias",
        "predictions.decoder.bias",
    ),
    pooler="pooler",
    text_pooler="albert.pooler",
    classifier="classifier",
    projection="encoder.embedding_hidden_mapping_in",
)
# What transformers' config class fills in.
DEFAULTS: dict[str, Any] = {
    **encoder_only.DEFAULTS,
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS, **config}
    encoder_only.check(config)
    turns, groups = config["num_hidden_layers"], config["num_hidden_groups"]
    if groups not in (1, turns):
        why = "all layers are one, or all are their own"
        raise family.unsupported("num_hidden_groups", groups, (1, turns), why)
    inner = config["inner_group_num"]
    return ModelSpec(
        family="albert",
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        embedding_size=config["embedding_size"],
        encoder=encoder_only.stack(config, turns * inner, num_blocks=inner, shared=groups == 1),
        heads=family.heads_of("Albert", HEADS, config, source),
        num_token_types=config["type_vocab_size"],
        init=TruncatedNormalInitSpec(config.get("initializer_range", 0.02)),
    )


def _masked_lm(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    del source
    return encoder_only.masked_lm_head(config, activation(config["hidden_act"], "hidden_act"))


def _rate(config: family.Config) -> float:
    rate = config["classifier_dropout_prob"]
    return config["hidden_dropout_prob"] if rate is None else rate


HEADS: dict[str, family.Heads] = {
    "ForMaskedLM": _masked_lm,
    # The second head says which of two segments was first.
    "ForPreTraining": lambda config, source: (
        *_masked_lm(config, source),
        labels.text_head(config, dropout_rate=_rate(config)),
    ),
    "Model": lambda _, source: (
        (PoolerHeadSpec(),) if "albert.pooler.weight" in source.tensors() else ()
    ),
    **labels.makers(_rate),
}


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    content = encoder_only.fields(spec, "Albert", rate="classifier_dropout_prob")
    if {MaskedLMHeadSpec, ClassificationHeadSpec} <= {type(head) for head in spec.heads}:
        content["architectures"] = ["AlbertForPreTraining"]
    encoder = family.stack_of(spec, "encoder")
    inner = len(encoder.blocks)
    turns = encoder.num_layers // inner
    return content | {
        "num_hidden_layers": turns,
        "num_hidden_groups": 1 if encoder.shared_layers else turns,
        "inner_group_num": inner,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    inner, names = len(family.stack_of(spec, "encoder").blocks), NAMES
    if any(isinstance(head, MaskedLMHeadSpec) for head in spec.heads):
        names = dataclasses.replace(names, classifier="sop_classifier.classifier")

    def layer_name(layer: int) -> str:
        group, number = divmod(layer, inner)
        return f"albert.encoder.albert_layer_groups.{group}.albert_layers.{number}"

    return encoder_only.tensors(spec, names, layer_name)


FAMILIES = {
    "albert": family.Family(
        spec,
        config,
        tensors,
        "Albert",
        prefix="albert.",
        ignored=(
            # Buffers, and what the released files have beside the masked-LM head.
            r"albert\.embeddings\.(position_ids|token_type_ids)",
            r"albert\.pooler\.(weight|bias)",
            r"sop_classifier\.classifier\.(weight|bias)",
        ),
    )
}
