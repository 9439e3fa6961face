"""ModernBERT: rotary positions of two bases, windows in two layers of three, gated MLPs."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import fields, modules
from t5lite.interop.huggingface.families.activations import (
    ACTIVATION,
    activation,
    activation_name,
)
from t5lite.interop.huggingface.families.family import Family, no_heads
from t5lite.interop.huggingface.families.fields import Config, Field, Fields, Foreign
from t5lite.interop.huggingface.families.layer_types import FULL, SLIDING, layer_types, period
from t5lite.layers import (
    HeadSpec,
    LayerNormSpec,
    MaskedLMHeadSpec,
    RotarySpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

FIELDS: Fields = {
    "vocab_size": Field(50368, "vocab"),
    "hidden_size": Field(768, "embed"),
    "num_attention_heads": Field(12, "attention.num_heads"),
    "num_hidden_layers": Field(22, "stack.num_layers"),
    "intermediate_size": Field(1152, "mlp.hidden"),
    "hidden_activation": Field("gelu", "mlp.activation", ACTIVATION),
    "norm_eps": Field(1e-5, "norm.epsilon"),
    "norm_bias": Field(False, "norm.use_bias"),
    "attention_bias": Field(False, "attention.use_bias"),
    "mlp_bias": Field(False, "mlp.use_bias"),
    "mlp_dropout": Field(0.0, "stack.dropout_rate"),
    "initializer_range": Field(0.02, "init.stddev"),
    "local_attention": Field(128),
    "global_attn_every_n_layers": Field(3),
    "classifier_activation": Field("gelu"),
    "classifier_bias": Field(False),
}
_TABLE = "model.embeddings.tok_embeddings.weight"
NAMES = {
    "token_embedding": _TABLE.removesuffix(".weight"),
    "encoder/embedding_norm": "model.embeddings.norm",
    "encoder/final_norm": "model.final_norm",
    **modules.layers(
        "encoder",
        "model.layers.{}",
        {
            "attention_norm": "attn_norm",
            "mlp_norm": "mlp_norm",
            **modules.fused("attn.Wqkv", modules.QUERY_KEY_VALUE),
            "attention/output": "attn.Wo",
            # The gate's rows, then the gated ones.
            **modules.fused("mlp.Wi", ("mlp/gate", "mlp/up")),
            "mlp/down": "mlp.Wo",
        },
    ),
    "lm_head/dense": "head.dense",
    "lm_head/norm": "head.norm",
    "lm_head": "decoder",
}
_THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}
# Version 4 reads these.
_OLD_THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    config, norm = foreign.config, LayerNormSpec(**foreign.parts["norm"])
    window = config["local_attention"] // 2

    def block(kind: str, **options: Any) -> TransformerBlockSpec:
        attention = foreign.attention(
            rotary=RotarySpec(_theta(config, kind)), window=window if kind == SLIDING else None
        )
        return TransformerBlockSpec(attention, foreign.mlp(gated=True), norm=norm, **options)

    every, layers = config["global_attn_every_n_layers"], range(config["num_hidden_layers"])
    kinds = layer_types(config, [SLIDING if n % every else FULL for n in layers])
    # The first layer's attention needs only the embeddings' norm.
    encoder = StackSpec(
        blocks=tuple(block(kind) for kind in period(kinds[1:])),
        causal=False,
        first_blocks=(block(kinds[0], attention_norm=False),),
        embedding_norm=norm,
        final_norm=norm,
        **foreign.parts["stack"],
    )
    init = TruncatedNormalInitSpec(**foreign.parts["init"], scaled_residuals=True)
    return {"encoder": encoder, "init": init}


def _masked_lm(foreign: Foreign) -> tuple[HeadSpec, ...]:
    config, field = foreign.config, "classifier_activation"
    fields.check(config, tie_word_embeddings=(True,), decoder_bias=(True,))
    norm = LayerNormSpec(**foreign.parts["norm"])
    name = activation(config[field], field)
    return (MaskedLMHeadSpec(name, norm, use_bias=config["classifier_bias"]),)


def _theta(config: Config, kind: str) -> float:
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = parameters.get("rope_type", "default")
    if scaling != "default" or config.get("rope_scaling"):
        raise fields.unsupported(f"rope_parameters[{kind!r}]: rope_type", scaling, ["default"])
    return float(parameters.get("rope_theta") or config.get(_OLD_THETAS[kind]) or _THETAS[kind])


def _extra(spec: ModelSpec) -> dict[str, Any]:
    encoder, head = fields.stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    attentions = [block.attention for block in encoder.every_block]
    fields.expect(encoder.blocks[0].norm, LayerNormSpec, "norm")
    kinds = [SLIDING if attention.window else FULL for attention in attentions]
    thetas, windows = dict(_THETAS), [a.window for a in attentions if a.window]
    for kind, attention in zip(kinds, attentions, strict=True):
        thetas[kind] = fields.expect(attention.rotary, RotarySpec, "rotary").theta
    content = {
        "layer_types": kinds,
        "local_attention": 2 * windows[0] if windows else 128,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        **{_OLD_THETAS[kind]: theta for kind, theta in thetas.items()},
    }
    tokens = {"pad": 50283, "bos": 50281, "eos": 50282, "cls": 50281, "sep": 50282}
    for name, token in tokens.items():
        content[f"{name}_token_id"] = token if token < spec.vocab else 0
    if isinstance(head, MaskedLMHeadSpec):
        content["classifier_activation"] = activation_name(head.activation)
        content["classifier_bias"] = head.use_bias
    return content


FAMILIES = {
    "modernbert": Family(
        "ModernBert",
        FIELDS,
        {"ForMaskedLM": _masked_lm, "Model": no_heads},
        _spec_parts,
        _extra,
        functools.partial(modules.tensors_of, names=NAMES, tied={_TABLE: ("decoder.weight",)}),
        lm="ForMaskedLM",
        side="encoder",
        prefix="model.",
    )
}
