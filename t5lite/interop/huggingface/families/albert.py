"""ALBERT."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, fields, labels, modules
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign, Heads
from t5lite.interop.tensors import Tensor
from t5lite.layers import ClassificationHeadSpec, MaskedLMHeadSpec, TruncatedNormalInitSpec
from t5lite.models import ModelSpec

NAMES = {
    **encoder_only.names(
        "albert.",
        "encoder.albert_layer_groups.{}",
        (
            *("attention.query", "attention.key", "attention.value", "attention.dense"),
            *("attention.LayerNorm", "ffn", "ffn_output", "full_layer_layer_norm"),
        ),
        ("predictions.dense", "predictions.LayerNorm", "predictions"),
        pooler="pooler",
        text_pooler="albert.pooler",
        classifier="classifier",
    ),
    "encoder/embedding_projection": "albert.encoder.embedding_hidden_mapping_in",
}
TIED = encoder_only.tied("albert.", "predictions.decoder", "predictions")
FIELDS: Fields = {
    **fields.with_defaults(
        encoder_only.FIELDS,
        vocab_size=30000,
        hidden_size=4096,
        num_attention_heads=64,
        intermediate_size=16384,
        hidden_act="gelu_new",
        hidden_dropout_prob=0.0,
    ),
    "embedding_size": Field(128, "embedding_size"),
    "num_hidden_groups": Field(1),
    "inner_group_num": Field(1),
    "classifier_dropout_prob": Field(0.1, nullable=True),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    repeats, groups = (foreign.config[f"num_hidden_{name}"] for name in ("layers", "groups"))
    if groups not in (1, repeats):
        why = "all layers are one, or each has its parameters"
        raise fields.unsupported("num_hidden_groups", groups, (1, repeats), why)
    return encoder_only.spec_parts(
        foreign,
        TruncatedNormalInitSpec,
        num_blocks=foreign.config["inner_group_num"],
        shared=groups == 1,
    )


def _rate(foreign: Foreign) -> float:
    rate = foreign.config["classifier_dropout_prob"]
    return foreign.config["hidden_dropout_prob"] if rate is None else rate


HEADS: dict[str, Heads] = {
    "ForMaskedLM": encoder_only.masked_lm_head,
    # The second head says which of two segments was first.
    "ForPreTraining": lambda foreign: (
        *encoder_only.masked_lm_head(foreign),
        labels.text_head(foreign.config, dropout_rate=_rate(foreign)),
    ),
    "Model": functools.partial(encoder_only.pooled, weight="albert.pooler.weight"),
    **labels.makers(_rate),
}


def _extra(spec: ModelSpec) -> dict[str, Any]:
    encoder = fields.stack_of(spec, "encoder")
    inner = len(encoder.blocks)
    repeats = encoder.num_layers // inner
    content = encoder_only.extra(spec, "classifier_dropout_prob") | {
        "embedding_size": spec.embedding_size or spec.embed,
        "num_hidden_layers": repeats,
        "num_hidden_groups": 1 if encoder.shared_layers else repeats,
        "inner_group_num": inner,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    if {MaskedLMHeadSpec, ClassificationHeadSpec} <= {type(head) for head in spec.heads}:
        content |= {"architectures": ["AlbertForPreTraining"], **labels.fields(spec.heads[-1])}
    return content


def _tensors(spec: ModelSpec) -> list[Tensor]:
    inner, names = len(fields.stack_of(spec, "encoder").blocks), NAMES
    if any(isinstance(head, MaskedLMHeadSpec) for head in spec.heads):
        names = NAMES | {"classification_head/projection": "sop_classifier.classifier"}

    def layer_name(layer: int) -> str:
        group, number = divmod(layer, inner)
        return f"{group}.albert_layers.{number}"

    return modules.tensors_of(spec, names, layer_name=layer_name, tied=TIED)


FAMILIES = {
    "albert": Family(
        "Albert",
        FIELDS,
        HEADS,
        _spec_parts,
        _extra,
        _tensors,
        lm="ForMaskedLM",
        side="encoder",
        prefix="albert.",
        ignored=(
            # Buffers, and tensors that the released files have beside the masked-LM head.
            r"albert\.embeddings\.(position_ids|token_type_ids)",
            r"albert\.pooler\.(weight|bias)",
            r"sop_classifier\.classifier\.(weight|bias)",
        ),
    )
}
