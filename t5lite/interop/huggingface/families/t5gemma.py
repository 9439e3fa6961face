"""T5Gemma: an encoder and a decoder of Gemma 2's layers, each with a config and a table."""

from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import family, gemma, modules
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import HeadSpec, LMHeadSpec, NormalInitSpec
from t5lite.models import ModelSpec

CLASSES, LM = "T5Gemma", "ForConditionalGeneration"
LOGITS = "lm_head.out_proj.weight"
NORMS = {
    "attention_norm": "pre_self_attn_layernorm",
    "attention_output_norm": "post_self_attn_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
CROSS_NORMS = {
    "cross_attention_norm": "pre_cross_attn_layernorm",
    "cross_attention_output_norm": "post_cross_attn_layernorm",
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    defaults = {**gemma.DEFAULTS["gemma2"], "dropout_rate": config.get("dropout_rate", 0.0)}
    sides = {side: {**defaults, **(config.get(side) or {})} for side in ("encoder", "decoder")}
    encoder, decoder = sides["encoder"], sides["decoder"]
    vocab = config.get("vocab_size") or decoder["vocab_size"]
    for side, side_config in sides.items():
        if side_config["vocab_size"] != vocab:
            raise InputError(
                f"{side}.vocab_size = {side_config['vocab_size']}: must be {vocab} like the rest"
            )
        side_config["dropout_rate"] = defaults[
            "dropout_rate"
        ]  # theirs overrule those of the stacks
    stacks: Any = {
        side: gemma.stack_spec(
            side_config,
            around=True,
            causal=side == "decoder",
            crossed=side == "decoder",
            dropout="dropout_rate",
        )
        for side, side_config in sides.items()
    }
    if encoder["hidden_size"] != decoder["hidden_size"]:
        stacks["encoder"] = stacks["encoder"].replace(embed=encoder["hidden_size"])
    return ModelSpec(
        family="t5gemma",
        vocab=vocab,
        embed=decoder["hidden_size"],
        heads=family.heads_of(CLASSES, HEADS, config, source),
        shared_embedding=False,
        start_id=decoder["bos_token_id"],
        init=NormalInitSpec(config.get("initializer_range", decoder["initializer_range"])),
        **stacks,
    )


def _lm_head(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    tied = config.get("tie_word_embeddings", True) or LOGITS not in source.tensors()
    softcap = {**gemma.DEFAULTS["gemma2"], **(config.get("decoder") or {})}[
        "final_logit_softcapping"
    ]
    return (LMHeadSpec(tied=bool(tied), softcap=softcap),)


HEADS: dict[str, family.Heads] = {LM: _lm_head, "Model": family.no_heads}


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    encoder, decoder = family.stack_of(spec, "encoder"), family.stack_of(spec, "decoder")
    head = spec.heads[0] if spec.heads else LMHeadSpec(tied=True, softcap=30.0)
    head = family.expect(head, LMHeadSpec, "heads")
    shared = {
        "vocab_size": spec.vocab,
        "initializer_range": family.initial_stddev(spec),
        "bos_token_id": spec.start_id,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dropout_rate": decoder.dropout_rate,
        "tie_word_embeddings": head.tied,
    }
    module = {"model_type": "t5_gemma_module", "final_logit_softcapping": head.softcap}
    width = encoder.embed or spec.embed
    return {
        **shared,
        "architectures": [CLASSES + (LM if spec.heads else "Model")],
        "model_type": "t5gemma",
        "is_encoder_decoder": True,
        "encoder": {
            **shared,
            **module,
            **gemma.stack_config(encoder, width, causal=False),
            "is_decoder": False,
        },
        "decoder": {
            **shared,
            **module,
            **gemma.stack_config(decoder, spec.embed, causal=True),
            "is_decoder": True,
            "cross_attention_hidden_size": width,
        },
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    encoder, decoder = family.stack_of(spec, "encoder"), family.stack_of(spec, "decoder")
    width = encoder.embed or spec.embed
    result = modules.table(
        "model.decoder.embed_tokens.weight",
        "token_embedding",
        spec.vocab,
        spec.embed,
        aliases=(LOGITS,) if modules.is_tied(spec) else (),
    )
    name = "model.encoder.embed_tokens.weight"
    result += modules.table(name, "encoder_embedding", spec.vocab, width)
    for side, stack, names in (
        ("encoder", encoder, gemma.layer_names(NORMS)),
        ("decoder", decoder, gemma.layer_names(NORMS | CROSS_NORMS, crossed=True)),
    ):
        result += modules.stack_tensors(
            stack,
            side,
            stack.embed or spec.embed,
            f"model.{side}.layers.{{}}".format,
            names,
            kv_embed=width,
            final_norm=f"model.{side}.norm",
        )
    return result + modules.lm_head(spec, LOGITS)


FAMILIES = {"t5gemma": family.Family(spec, config, tensors, CLASSES, prefix="model.")}
