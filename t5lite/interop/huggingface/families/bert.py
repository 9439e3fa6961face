"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: one architecture under different tensor names."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, fields, labels, modules
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign, Heads
from t5lite.layers import (
    ClassificationHeadSpec,
    NormalInitSpec,
    RegressionHeadSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec

LAYER = "encoder.layer.{}"
MODULES = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "attention.output.LayerNorm"),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
)
_PREDICTIONS = "cls.predictions"
_BERT = encoder_only.names(
    "bert.",
    LAYER,
    MODULES,
    (f"{_PREDICTIONS}.transform.dense", f"{_PREDICTIONS}.transform.LayerNorm", _PREDICTIONS),
    text_pooler="bert.pooler.dense",
    classifier="classifier",
)
_ROBERTA = encoder_only.names(
    "roberta.", LAYER, MODULES, ("lm_head.dense", "lm_head.layer_norm", "lm_head")
)
_DISTILBERT = encoder_only.names(
    "distilbert.",
    "transformer.layer.{}",
    (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        *("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
    ),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
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
        for name, field in fields.with_defaults(encoder_only.FIELDS, num_hidden_layers=6).items()
        if name not in _FIXED
    },
    "seq_classif_dropout": Field(0.2),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    config = foreign.config
    fields.check(config, sinusoidal_pos_embds=(False, True, None))  # a table in either case
    model_type = config["model_type"]
    if model_type == "distilbert":
        foreign.parts["norm"]["epsilon"] = _FIXED["layer_norm_eps"]
        foreign = foreign._replace(config={**config, **_FIXED})
    offset = config["pad_token_id"] + 1 if "roberta" in model_type else 0
    # The others are drawn by PyTorch, which does not truncate.
    init = TruncatedNormalInitSpec if model_type == "bert" else NormalInitSpec
    return encoder_only.spec_parts(foreign, init, offset=offset)


def _distilled_rate(foreign: Foreign) -> float:
    return foreign.config["seq_classif_dropout"]


def _extra(spec: ModelSpec) -> dict[str, Any]:
    if spec.family != "distilbert":
        return encoder_only.extra(spec)
    of_text = any(isinstance(h, ClassificationHeadSpec | RegressionHeadSpec) for h in spec.heads)
    content = encoder_only.extra(spec, "seq_classif_dropout" if of_text else "classifier_dropout")
    del content["type_vocab_size"]
    content["attention_dropout"] = content.pop("attention_probs_dropout_prob")
    return content


def _family(
    classes: str,
    prefix: str,
    names: dict[str, Any],
    table: Fields,
    logits: str,
    *,
    activation: str | None = None,
) -> Family:
    """Returns a family.

    Args:
      classes: prefix of its architectures' names.
      prefix: of the base model's tensors.
      logits: the module of the masked-LM head's table.
      activation: of that head, where no config changes it.
    """
    distilled = names is _DISTILBERT
    lm = functools.partial(encoder_only.masked_lm_head, name=activation)
    heads: dict[str, Heads] = {
        "ForMaskedLM": lm,
        "Model": functools.partial(encoder_only.pooled, weight=f"{prefix}pooler.dense.weight"),
        **({"ForPreTraining": lm} if names is _BERT else {}),
        **labels.makers(
            labels.classifier_rate,
            text_rate=_distilled_rate if distilled else None,
            **({"pooler_activation": "relu"} if distilled else {}),
        ),
    }
    return Family(
        classes,
        table,
        heads,
        _spec_parts,
        _extra,
        functools.partial(
            modules.tensors_of,
            names=names,
            tied=encoder_only.tied(prefix, logits, names["lm_head"]),
        ),
        lm="ForMaskedLM",
        side="encoder",
        prefix=prefix,
        ignored=(
            # Buffers; BERT's head for next sentences; poolers that some heads leave out.
            rf"{prefix}embeddings\.(position_ids|token_type_ids)",
            r"cls\.seq_relationship\.(weight|bias)",
            rf"{prefix}pooler\.dense\.(weight|bias)",
        ),
        # The names in TensorFlow's checkpoints, and in those converted from them years ago.
        renamed=(
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ),
    )


FAMILIES = {
    "bert": _family("Bert", "bert.", _BERT, encoder_only.FIELDS, f"{_PREDICTIONS}.decoder"),
    "roberta": _family(
        "Roberta",
        "roberta.",
        _ROBERTA,
        fields.with_defaults(encoder_only.FIELDS, vocab_size=50265, pad_token_id=1),
        "lm_head.decoder",
        activation="gelu",
    ),
    "distilbert": _family(
        "DistilBert",
        "distilbert.",
        _DISTILBERT,
        _DISTILBERT_FIELDS,
        "vocab_projector",
    ),
    "xlm-roberta": _family(
        "XLMRoberta",
        "roberta.",
        _ROBERTA,
        fields.with_defaults(encoder_only.FIELDS, pad_token_id=1),
        "lm_head.decoder",
        activation="gelu",
    ),
}
