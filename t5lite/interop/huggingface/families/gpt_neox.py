"""GPT-NeoX: GPT-NeoX-20B and Pythia."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, fields, modules
from t5lite.interop.huggingface.families.activations import activations
from t5lite.interop.huggingface.families.family import Family, tokens
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.layers import LayerNormSpec, SmallInitSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

NAMES = {
    "token_embedding": "gpt_neox.embed_in",
    "decoder/final_norm": "gpt_neox.final_layer_norm",
    **modules.layers(
        "decoder",
        "gpt_neox.layers.{}",
        {
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            **modules.fused("attention.query_key_value", modules.QUERY_KEY_VALUE, by_head=True),
            "attention/output": "attention.dense",
            "mlp/up": "mlp.dense_h_to_4h",
            "mlp/down": "mlp.dense_4h_to_h",
        },
    ),
    "lm_head/projection": "embed_out",
    **decoder_only.LABELS,
}
# Of versions 4 and 5 of transformers, which both read the first.
LOGITS = ("embed_out.weight", "lm_head.weight")
FIELDS: Fields = {
    "vocab_size": Field(50432, "vocab"),
    "hidden_size": Field(6144, "embed"),
    "num_hidden_layers": Field(44, "stack.num_layers"),
    "num_attention_heads": Field(64, "attention.num_heads"),
    "intermediate_size": Field(24576, "mlp.hidden"),
    "hidden_act": Field("gelu", "mlp.activation", activations("gelu_fast")),
    "hidden_dropout": Field(0.0, "stack.dropout_rate"),
    "layer_norm_eps": Field(1e-5, "norm.epsilon"),
    "use_parallel_residual": Field(True, "block.parallel"),
    "attention_bias": Field(True, "attention.use_bias"),
    # Unused (fan-in decides), but configs have it.
    "initializer_range": Field(0.02),
    "max_position_embeddings": Field(2048),
    "rotary_emb_base": Field(10000.0),
    "rotary_pct": Field(0.25),
    "tie_word_embeddings": Field(False),
    "classifier_dropout": Field(None, kind=float),
    **tokens(bos=0, eos=2),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    """Returns ModelSpec's fields; residual dropout serves everywhere."""
    config, norm = foreign.config, LayerNormSpec(**foreign.parts["norm"])
    rotary = rotary_spec(config, theta=config["rotary_emb_base"], fraction=config["rotary_pct"])
    block = TransformerBlockSpec(
        foreign.attention(rotary=rotary),
        foreign.mlp(use_bias=True),
        norm=norm,
        **foreign.parts["block"],
    )
    return {
        "decoder": StackSpec(
            blocks=(block,), causal=True, final_norm=norm, **foreign.parts["stack"]
        ),
        "init": SmallInitSpec(),
        "start_id": decoder_only.start_id(foreign),
    }


def _extra(spec: ModelSpec) -> dict[str, Any]:
    decoder = fields.stack_of(spec, "decoder")
    rope = rope_config(decoder.blocks[0].attention.rotary)
    # GPT-NeoX names two of them otherwise.
    rope["rotary_emb_base"] = rope.pop("rope_theta", FIELDS["rotary_emb_base"].default)
    rope["rotary_pct"] = rope.pop("partial_rotary_factor", 1.0)
    return {
        **decoder_only.extra(spec),
        "attention_dropout": decoder.dropout_rate,
        "initializer_range": getattr(spec.init, "stddev", 0.02),
        "eos_token_id": spec.start_id,  # one token is both
        **rope,
    }


FAMILIES = {
    "gpt_neox": Family(
        "GPTNeoX",
        FIELDS,
        decoder_only.heads(),
        _spec_parts,
        _extra,
        functools.partial(
            modules.tensors_of,
            names=NAMES,
            aliases={LOGITS[0]: LOGITS[1:]},
            tied={"gpt_neox.embed_in.weight": LOGITS},
        ),
        prefix="gpt_neox.",
        # Causal masks and frequencies, which older versions saved.
        ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    )
}
