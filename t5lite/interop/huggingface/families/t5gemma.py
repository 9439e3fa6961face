"""T5Gemma: an encoder and a decoder of Gemma 2's layers, each with a config and a table."""

import functools
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import fields, gemma, modules
from t5lite.interop.huggingface.families.family import Family, no_heads
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.layers import HeadSpec, LMHeadSpec, NormalInitSpec
from t5lite.models import ModelSpec

LM, LOGITS = "ForConditionalGeneration", "lm_head.out_proj.weight"
NORMS = {
    "attention_norm": "pre_self_attn_layernorm",
    "attention_output_norm": "post_self_attn_layernorm",
    "cross_attention_norm": "pre_cross_attn_layernorm",
    "cross_attention_output_norm": "post_cross_attn_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
NAMES = {
    "token_embedding": "model.decoder.embed_tokens",
    "encoder_embedding": "model.encoder.embed_tokens",
    "lm_head/projection": "lm_head.out_proj",
    **gemma.names("encoder", NORMS, model="model.encoder"),
    **gemma.names("decoder", NORMS, model="model.decoder"),
}
FIELDS: Fields = {
    "vocab_size": Field(None, "vocab", kind=int),
    "initializer_range": Field(None, "init.stddev", kind=float),
    # Overrules those of the stacks.
    "dropout_rate": Field(0.0, nullable=True),
    "tie_word_embeddings": Field(True),
    "encoder": Field(None, kind=dict),
    "decoder": Field(None, kind=dict),
}
_STACK_FIELDS: Fields = {
    **{name: field for name, field in gemma.GEMMA2_FIELDS.items() if name != "attention_dropout"},
    "dropout_rate": Field(0.0, "stack.dropout_rate", nullable=True),
}


def _side(foreign: Foreign, side: str) -> Foreign:
    """Returns the config of a stack, whose errors name `encoder.hidden_size`."""
    config = {name: field.default for name, field in _STACK_FIELDS.items()}
    config |= foreign.config[side] or {}
    config["dropout_rate"] = foreign.config["dropout_rate"]
    named = {f"{side}.{name}": value for name, value in config.items()}
    return fields.read(_STACK_FIELDS, named, foreign.source, prefix=f"{side}.")._replace(
        config=config
    )


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    sides = {side: _side(foreign, side) for side in ("encoder", "decoder")}
    encoder, decoder = (side.parts["model"] for side in sides.values())
    vocab = foreign.config["vocab_size"] or decoder["vocab"]
    stacks: dict[str, Any] = {}
    for side, stack in sides.items():
        if (size := stack.config["vocab_size"]) != vocab:
            name = f"{side}.vocab_size"
            raise InputError(f"{name} = {size}: must be {vocab} like the rest", field=name)
        crossed = side == "decoder"
        stacks[side] = gemma.stack_spec(stack, around=True, causal=crossed, crossed=crossed)
    if encoder["embed"] != decoder["embed"]:
        stacks["encoder"] = stacks["encoder"].replace(embed=encoder["embed"])
    return {
        **stacks,
        **decoder,
        "vocab": vocab,
        "shared_embedding": False,
        "start_id": sides["decoder"].config["bos_token_id"],
        "init": NormalInitSpec(**{**sides["decoder"].parts["init"], **foreign.parts["init"]}),
    }


def _lm_head(foreign: Foreign) -> tuple[HeadSpec, ...]:
    softcap = _side(foreign, "decoder").config["final_logit_softcapping"]
    tied = foreign.config["tie_word_embeddings"] or LOGITS not in foreign.source.tensors()
    return (LMHeadSpec(tied=bool(tied), softcap=softcap),)


def _extra(spec: ModelSpec) -> dict[str, Any]:
    encoder, decoder = fields.stack_of(spec, "encoder"), fields.stack_of(spec, "decoder")
    head = spec.heads[0] if spec.heads else LMHeadSpec(tied=True, softcap=30.0)
    head = fields.expect(head, LMHeadSpec, "heads")
    shared = {
        "bos_token_id": spec.start_id,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dropout_rate": decoder.dropout_rate,
        "tie_word_embeddings": head.tied,
    }
    module = {
        **shared,
        "model_type": "t5_gemma_module",
        "final_logit_softcapping": head.softcap,
    }
    width = encoder.embed or spec.embed
    return {
        **shared,
        "is_encoder_decoder": True,
        "encoder": {
            **fields.write(_STACK_FIELDS, spec, "encoder"),
            **module,
            **gemma.stack_fields(encoder, causal=False),
            "hidden_size": width,
            "is_decoder": False,
        },
        "decoder": {
            **fields.write(_STACK_FIELDS, spec, "decoder"),
            **module,
            **gemma.stack_fields(decoder, causal=True),
            "is_decoder": True,
            "cross_attention_hidden_size": width,
        },
    }


FAMILIES = {
    "t5gemma": Family(
        "T5Gemma",
        FIELDS,
        {LM: _lm_head, "Model": no_heads},
        _spec_parts,
        _extra,
        functools.partial(
            modules.tensors_of, names=NAMES, tied={"model.decoder.embed_tokens.weight": (LOGITS,)}
        ),
        lm=LM,
        prefix="model.",
    )
}
