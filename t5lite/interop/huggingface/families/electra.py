"""ELECTRA: discriminators and generators."""

from typing import Any

from t5lite.interop.huggingface.families import encoder_only, family, labels, modules
from t5lite.interop.huggingface.families.activations import activation
from t5lite.interop.huggingface.families.bert import LAYER
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import HeadSpec, ReplacedTokensHeadSpec, TruncatedNormalInitSpec
from t5lite.models import ModelSpec

NAMES = encoder_only.Names(
    "Electra",
    "electra.",
    LAYER,
    (
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.weight",
        "generator_lm_head.bias",
    ),
)
# What transformers' config class fills in.
DEFAULTS: dict[str, Any] = {
    **encoder_only.DEFAULTS,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS, **config}
    encoder_only.check(config)
    size, embed = config["embedding_size"], config["hidden_size"]
    return ModelSpec(
        family="electra",
        vocab=config["vocab_size"],
        embed=embed,
        embedding_size=None if size == embed else size,
        encoder=encoder_only.stack(config, config["num_hidden_layers"]),
        heads=family.heads_of("Electra", HEADS, _named(config, source), source),
        num_token_types=config["type_vocab_size"],
        init=TruncatedNormalInitSpec(config.get("initializer_range", 0.02)),
    )


def _pretraining(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    del source
    return (ReplacedTokensHeadSpec(activation(config["hidden_act"], "hidden_act")),)


HEADS: dict[str, family.Heads] = {
    "Model": family.no_heads,
    "ForPreTraining": _pretraining,
    # Neither head's activation is in any config.
    "ForMaskedLM": lambda config, _: encoder_only.masked_lm_head(config, "gelu"),
    **labels.makers(labels.classifier_rate, pooler_activation="gelu"),
}


def _named(config: family.Config, source: Source) -> family.Config:
    """Returns a config with `architectures`, which the weights tell if it has none."""
    stored, suffix = source.tensors(), "Model"
    if "discriminator_predictions.dense.weight" in stored:
        suffix = "ForPreTraining"
    if "generator_predictions.dense.weight" in stored:
        suffix = "ForMaskedLM"
    return {**config, "architectures": config.get("architectures") or [f"Electra{suffix}"]}


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    return encoder_only.fields(spec, "Electra", suffixes={ReplacedTokensHeadSpec: "ForPreTraining"})


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    result, embed = encoder_only.tensors(spec, NAMES), spec.embed
    if any(isinstance(head, ReplacedTokensHeadSpec) for head in spec.heads):
        for name, part, size in (("dense", "dense", embed), ("dense_prediction", "projection", 1)):
            name, path = f"discriminator_predictions.{name}", f"replaced_tokens_head/{part}"
            result += modules.linear(name, path, embed, size, use_bias=True)
    return result


FAMILIES = {
    "electra": family.Family(
        spec,
        config,
        tensors,
        "Electra",
        prefix="electra.",
        ignored=(r"electra\.embeddings\.(position_ids|token_type_ids)",),
    )
}
