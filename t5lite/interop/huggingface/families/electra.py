"""ELECTRA: discriminators and generators."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import encoder_only, labels, modules
from t5lite.interop.huggingface.families.bert import LAYER
from t5lite.interop.huggingface.families.family import Family
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign, Heads
from t5lite.interop.tensors import Tensor
from t5lite.layers import HeadSpec, ReplacedTokensHeadSpec, TruncatedNormalInitSpec
from t5lite.models import ModelSpec

NAMES = encoder_only.Names(
    "electra.",
    LAYER,
    (
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.weight",
        "generator_lm_head.bias",
    ),
)
FIELDS: Fields = {
    **encoder_only.with_defaults(hidden_size=256, num_attention_heads=4, intermediate_size=1024),
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
    """Returns the head that the weights show, for a config without `architectures`."""
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
    return {**encoder_only.fields(spec), "embedding_size": spec.embedding_size or spec.embed}


def _tensors(spec: ModelSpec) -> list[Tensor]:
    result, embed = encoder_only.tensors(spec, NAMES), spec.embed
    if any(isinstance(head, ReplacedTokensHeadSpec) for head in spec.heads):
        for name, part, size in (("dense", "dense", embed), ("dense_prediction", "projection", 1)):
            name, path = f"discriminator_predictions.{name}", f"replaced_tokens_head/{part}"
            result += modules.linear(name, path, embed, size, use_bias=True)
    return result


FAMILIES = {
    "electra": Family(
        "Electra",
        FIELDS,
        HEADS,
        _spec_parts,
        _extra,
        _tensors,
        lm="ForMaskedLM",
        suffixes={ReplacedTokensHeadSpec: "ForPreTraining"},
        side="encoder",
        prefix="electra.",
        ignored=(r"electra\.embeddings\.(position_ids|token_type_ids)",),
    )
}
