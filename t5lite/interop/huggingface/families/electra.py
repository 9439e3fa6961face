"""ELECTRA: discriminators and generators."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, fields, labels, modules
from t5lite.interop.huggingface.families.bert import LAYER, MODULES
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign, Heads
from t5lite.layers import HeadSpec, ReplacedTokensHeadSpec, TruncatedNormalInitSpec
from t5lite.models import ModelSpec

NAMES = {
    **encoder_only.names(
        "electra.",
        LAYER,
        MODULES,
        ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"),
    ),
    "encoder/embedding_projection": "electra.embeddings_project",
    "replaced_tokens_head/dense": "discriminator_predictions.dense",
    "replaced_tokens_head/projection": "discriminator_predictions.dense_prediction",
}
FIELDS: Fields = {
    **fields.with_defaults(
        encoder_only.FIELDS, hidden_size=256, num_attention_heads=4, intermediate_size=1024
    ),
    "embedding_size": Field(128),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    size, embed = foreign.config["embedding_size"], foreign.config["hidden_size"]
    parts = encoder_only.spec_parts(foreign, TruncatedNormalInitSpec)
    return parts | {"embedding_size": None if size == embed else size}


def _replaced_tokens(foreign: Foreign) -> tuple[HeadSpec, ...]:
    return (ReplacedTokensHeadSpec(foreign.parts["mlp"]["activation"]),)


# Neither head's activation is in any config.
_masked_lm = functools.partial(encoder_only.masked_lm_head, name="gelu")


def _unnamed(foreign: Foreign) -> tuple[HeadSpec, ...]:
    """Returns the head found in the weights, for a config without `architectures`."""
    stored = foreign.source.tensors()
    if foreign.config.get("architectures"):
        return ()
    if "generator_predictions.dense.weight" in stored:
        return _masked_lm(foreign)
    if "discriminator_predictions.dense.weight" in stored:
        return _replaced_tokens(foreign)
    return ()


HEADS: dict[str, Heads] = {
    "Model": _unnamed,
    "ForPreTraining": _replaced_tokens,
    "ForMaskedLM": _masked_lm,
    **labels.makers(labels.classifier_rate, pooler_activation="gelu"),
}


def _extra(spec: ModelSpec) -> dict[str, Any]:
    return {**encoder_only.extra(spec), "embedding_size": spec.embedding_size or spec.embed}


FAMILIES = {
    "electra": Family(
        "Electra",
        FIELDS,
        HEADS,
        _spec_parts,
        _extra,
        functools.partial(
            modules.tensors_of,
            names=NAMES,
            tied={"electra.embeddings.word_embeddings.weight": ("generator_lm_head.weight",)},
        ),
        lm="ForMaskedLM",
        suffixes={ReplacedTokensHeadSpec: "ForPreTraining"},
        side="encoder",
        prefix="electra.",
        ignored=(r"electra\.embeddings\.(position_ids|token_type_ids)",),
    )
}
