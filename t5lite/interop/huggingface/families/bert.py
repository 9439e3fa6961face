"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one architecture, with tensors of other names."""

import dataclasses
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, family, labels
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import (
    ClassificationHeadSpec,
    HeadSpec,
    NormalInitSpec,
    PoolerHeadSpec,
    RegressionHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

# What they call it, by what BERT calls it.
_DISTILBERT_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
}


LAYER = encoder_only.layer_names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)
NAMES = {
    "bert": encoder_only.Names(
        "Bert",
        "bert.",
        LAYER,
        (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
            "cls.predictions.decoder.bias",
        ),
        text_pooler="bert.pooler.dense",
        classifier="classifier",
    ),
    "roberta": encoder_only.Names(
        "Roberta",
        "roberta.",
        LAYER,
        (
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder.weight",
            "lm_head.bias",
            "lm_head.decoder.bias",
        ),
    ),
    "distilbert": encoder_only.Names(
        "DistilBert",
        "distilbert.",
        encoder_only.layer_names(
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
            attention_norm="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            mlp_norm="output_layer_norm",
        ),
        ("vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"),
        layer="transformer.layer",
        text_pooler="pre_classifier",
        classifier="classifier",
    ),
}
NAMES["xlm-roberta"] = dataclasses.replace(NAMES["roberta"], classes="XLMRoberta")
# Where they are not BERT's.
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "distilbert": {"num_hidden_layers": 6},
    "xlm-roberta": {"pad_token_id": 1},
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    model_type = config["model_type"]
    fields = dict(config)
    if model_type == "distilbert":
        fields |= {
            ours: fields[theirs] for ours, theirs in _DISTILBERT_FIELDS.items() if theirs in fields
        }
        fields |= {"type_vocab_size": None, "layer_norm_eps": 1e-12}
    config = {**encoder_only.DEFAULTS, **_OWN_DEFAULTS[model_type], **fields}
    encoder_only.check(config)
    family.check_fields(config, sinusoidal_pos_embds=(False, True, None))  # a table in either case
    offset = config["pad_token_id"] + 1 if "roberta" in model_type else 0
    # The others are drawn by PyTorch, which does not truncate.
    kind = TruncatedNormalInitSpec if model_type == "bert" else NormalInitSpec
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        encoder=encoder_only.stack(config, config["num_hidden_layers"], offset=offset),
        heads=family.heads_of(NAMES[model_type].classes, _heads(model_type), config, source),
        num_token_types=config["type_vocab_size"] or None,
        init=kind(config.get("initializer_range", 0.02)),
    )


def _heads(model_type: str) -> dict[str, family.Heads]:
    """Returns the heads by architecture."""

    def masked_lm(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
        # RoBERTa's head has an activation that no config changes.
        name = "gelu" if "roberta" in model_type else config["hidden_act"]
        return encoder_only.masked_lm_head(config, activation(name, "hidden_act"))

    def model(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
        pooled = f"{NAMES[model_type].prefix}pooler.dense.weight" in source.tensors()
        return (PoolerHeadSpec(),) if pooled else ()

    table: dict[str, family.Heads] = {"ForMaskedLM": masked_lm, "Model": model}
    if model_type == "bert":
        table["ForPreTraining"] = masked_lm
    if model_type != "distilbert":
        return table | labels.makers(labels.classifier_rate)

    def text_rate(config: family.Config) -> float:
        return float(config.get("seq_classif_dropout", 0.2))

    return table | labels.makers(
        labels.classifier_rate, text_rate=text_rate, pooler_activation="relu"
    )


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    names, distilled = NAMES[spec.family], spec.family == "distilbert"
    of_text = any(isinstance(h, ClassificationHeadSpec | RegressionHeadSpec) for h in spec.heads)
    rate = "seq_classif_dropout" if distilled and of_text else "classifier_dropout"
    content = encoder_only.fields(spec, names.classes, rate=rate)
    del content["embedding_size"]
    if distilled:
        del content["type_vocab_size"], content["layer_norm_eps"]
        for ours, theirs in _DISTILBERT_FIELDS.items():
            content[theirs] = content.pop(ours)
        content["attention_dropout"] = content.pop("attention_probs_dropout_prob")
    return content


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    return encoder_only.tensors(spec, NAMES[spec.family])


def _family(names: encoder_only.Names) -> family.Family:
    return family.Family(
        spec,
        config,
        tensors,
        names.classes,
        prefix=names.prefix,
        ignored=(
            # Buffers; BERT's head for next sentences; poolers that some heads leave out.
            rf"{names.prefix}embeddings\.(position_ids|token_type_ids)",
            r"cls\.seq_relationship\.(weight|bias)",
            rf"{names.prefix}pooler\.dense\.(weight|bias)",
        ),
        # As TensorFlow's checkpoints call them, and those converted from them years ago.
        renamed=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
    )


FAMILIES = {model_type: _family(names) for model_type, names in NAMES.items()}
