"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one architecture, with tensors of other names."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, labels
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign, Heads, check_fields
from t5lite.layers import (
    ClassificationHeadSpec,
    NormalInitSpec,
    RegressionHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

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
_BERT = encoder_only.Names(
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
)
_ROBERTA = encoder_only.Names(
    "roberta.",
    LAYER,
    (
        "lm_head.dense",
        "lm_head.layer_norm",
        "lm_head.decoder.weight",
        "lm_head.bias",
        "lm_head.decoder.bias",
    ),
)
_DISTILBERT = encoder_only.Names(
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
)
# DistilBERT's names of BERT's fields, and its constants.
_FIXED = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
_RENAMED = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
}
_DISTILBERT_FIELDS: Fields = {
    **{
        _RENAMED.get(name, name): field
        for name, field in encoder_only.with_defaults(num_hidden_layers=6).items()
        if name not in _FIXED
    },
    "seq_classif_dropout": Field(0.2),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    config = foreign.config
    check_fields(config, sinusoidal_pos_embds=(False, True, None))  # a table in either case
    model_type = config["model_type"]
    if model_type == "distilbert":
        foreign.parts["norm"]["epsilon"] = _FIXED["layer_norm_eps"]
        foreign = foreign._replace(config={**config, **_FIXED})
    offset = config["pad_token_id"] + 1 if "roberta" in model_type else 0
    # The others are drawn by PyTorch, which does not truncate.
    init = TruncatedNormalInitSpec if model_type == "bert" else NormalInitSpec
    return encoder_only.spec_parts(foreign, init, offset=offset)


def _extra(spec: ModelSpec) -> dict[str, Any]:
    if spec.family != "distilbert":
        return encoder_only.fields(spec)
    of_text = any(isinstance(h, ClassificationHeadSpec | RegressionHeadSpec) for h in spec.heads)
    rate = "seq_classif_dropout" if of_text else "classifier_dropout"
    content = encoder_only.fields(spec, rate)
    del content["type_vocab_size"]
    content["attention_dropout"] = content.pop("attention_probs_dropout_prob")
    return content


def _family(
    classes: str, names: encoder_only.Names, fields: Fields, activation: str | None = None
) -> Family:
    """Returns a family, whose masked-LM head has an `activation` that no config changes."""
    distilled = names is _DISTILBERT
    lm = functools.partial(encoder_only.masked_lm_head, name=activation)
    heads: dict[str, Heads] = {
        "ForMaskedLM": lm,
        "Model": functools.partial(
            encoder_only.pooled, weight=f"{names.prefix}pooler.dense.weight"
        ),
        **({"ForPreTraining": lm} if names is _BERT else {}),
        **labels.makers(
            labels.classifier_rate,
            text_rate=(lambda foreign: foreign.config["seq_classif_dropout"])
            if distilled
            else None,
            **({"pooler_activation": "relu"} if distilled else {}),
        ),
    }
    return Family(
        classes,
        fields,
        heads,
        _spec_parts,
        _extra,
        functools.partial(encoder_only.tensors, names=names),
        lm="ForMaskedLM",
        side="encoder",
        prefix=names.prefix,
        ignored=(
            # Buffers; BERT's head for next sentences; poolers that some heads leave out.
            rf"{names.prefix}embeddings\.(position_ids|token_type_ids)",
            r"cls\.seq_relationship\.(weight|bias)",
            rf"{names.prefix}pooler\.dense\.(weight|bias)",
        ),
        # The names in TensorFlow's checkpoints, and in those converted from them years ago.
        renamed=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
    )


_XLM_ROBERTA_FIELDS = encoder_only.with_defaults(pad_token_id=1)
FAMILIES = {
    "bert": _family("Bert", _BERT, encoder_only.FIELDS),
    "roberta": _family(
        "Roberta",
        _ROBERTA,
        encoder_only.with_defaults(vocab_size=50265, pad_token_id=1),
        "gelu",
    ),
    "distilbert": _family("DistilBert", _DISTILBERT, _DISTILBERT_FIELDS),
    "xlm-roberta": _family("XLMRoberta", _ROBERTA, _XLM_ROBERTA_FIELDS, "gelu"),
}
