"""ELECTRA: discriminators and generators."""

from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import labels, narrow_embedding
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.huggingface.families.bert import SUBLAYERS
from t5lite.interop.huggingface.families.family import Config, Family
from t5lite.interop.huggingface.families.modules import linear
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    HeadSpec,
    MaskedLMHeadSpec,
    ReplacedTokensHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

KNOWN = (
    "ForPreTraining",
    "ForMaskedLM",
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
# What transformers' config class fills in.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def spec(config: Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS, **config}
    narrow_embedding.check(config)
    size, embed = config["embedding_size"], config["hidden_size"]
    return ModelSpec(
        family="electra",
        vocab=config["vocab_size"],
        embed=embed,
        embedding_size=None if size == embed else size,
        encoder=narrow_embedding.stack(config, config["num_hidden_layers"], shared=False),
        heads=heads(config, source),
        num_token_types=config["type_vocab_size"],
        init=TruncatedNormalInitSpec(config.get("initializer_range", 0.02)),
    )


def heads(config: Config, source: Source) -> tuple[HeadSpec, ...]:
    """Returns the heads of a config's architecture; of one that names none, the weights say."""
    there = source.tensors()
    suffix = "Model"
    if "discriminator_predictions.dense.weight" in there:
        suffix = "ForPreTraining"
    if "generator_predictions.dense.weight" in there:
        suffix = "ForMaskedLM"
    names = config.get("architectures") or [f"Electra{suffix}"]
    suffix = names[0].removeprefix("Electra")
    if suffix not in KNOWN:
        known = ", ".join(f"Electra{each}" for each in KNOWN)
        raise InputError(f"architectures = {names!r} is not modelled; those that are: {known}")
    dropout_rate = config.get("classifier_dropout")
    if dropout_rate is None:
        dropout_rate = config["hidden_dropout_prob"]
    if suffix == "ForPreTraining":
        return (ReplacedTokensHeadSpec(activation(config["hidden_act"], "hidden_act")),)
    if suffix == "ForMaskedLM":
        # Its activation is in no config.
        return (narrow_embedding.masked_lm_head(config, "gelu"),)
    if suffix == "ForTokenClassification":
        return (labels.token_head(config, dropout_rate=dropout_rate),)
    if suffix == "ForQuestionAnswering":
        return (labels.spans_head(config),)
    if suffix == "ForSequenceClassification":
        # Its activation is in no config.
        head = labels.text_head(config, dropout_rate=dropout_rate, pooler_activation="gelu")
        return (head,)
    return ()


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    found, head = narrow_embedding.fields(spec), spec.heads[0] if spec.heads else None
    suffixes: dict[type, str] = {
        ReplacedTokensHeadSpec: "ForPreTraining",
        MaskedLMHeadSpec: "ForMaskedLM",
        **labels.SUFFIXES,
    }
    found["architectures"] = [f"Electra{suffixes.get(type(head), 'Model')}"]
    if head is not None:
        found |= labels.fields(head)
        if hasattr(head, "dropout_rate"):
            found["classifier_dropout"] = head.dropout_rate
    return found


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    encoder, kinds = spec.encoder, {type(head) for head in spec.heads}
    assert encoder is not None
    masked, embed = MaskedLMHeadSpec in kinds, spec.embed
    found = narrow_embedding.embedding_tensors(
        spec,
        "electra.",
        projection="embeddings_project",
        aliases=("generator_lm_head.weight",) if masked else (),
    )
    for layer, block in enumerate(encoder.every_block):
        place, index = encoder.place(layer)
        name, path = f"electra.encoder.layer.{layer}", f"encoder/{place}"
        found += narrow_embedding.layer_tensors(
            name, path, block, names=SUBLAYERS, embed=embed, layer=index
        )
    if masked:
        found += narrow_embedding.masked_lm_tensors(
            spec, "generator_predictions", "generator_lm_head.bias"
        )
    if ReplacedTokensHeadSpec in kinds:
        name, path = "discriminator_predictions", "replaced_tokens_head"
        found += linear(f"{name}.dense", f"{path}/dense", embed, embed, use_bias=True)
        found += linear(f"{name}.dense_prediction", f"{path}/projection", embed, 1, use_bias=True)
    for head in spec.heads:
        pooled = ("classifier.dense", "classifier.out_proj")
        found += labels.tensors(head, embed, pooler=pooled[0], classifier=pooled[1])
    return found


FAMILIES = {
    "electra": Family(
        spec,
        config,
        tensors,
        prefix="electra.",
        base="ElectraModel",
        ignored=(r"electra\.embeddings\.(position_ids|token_type_ids)",),
    )
}
