"""GPT-2 and DistilGPT2."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, fields, modules
from t5lite.interop.huggingface.families.activations import ACTIVATION
from t5lite.interop.huggingface.families.family import Family, tokens
from t5lite.interop.huggingface.families.fields import Field, Fields, Foreign
from t5lite.layers import AttentionSpec, LayerNormSpec, LearnedPositionsSpec, NormalInitSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

LM = "LMHeadModel"
NAMES = {
    "token_embedding": "transformer.wte",
    "decoder/position_embedding": "transformer.wpe",
    "decoder/final_norm": "transformer.ln_f",
    **modules.layers(
        "decoder",
        "transformer.h.{}",
        {
            **modules.fused("attn.c_attn", modules.QUERY_KEY_VALUE, conv=True),
            "attention/output": modules.Module("attn.c_proj", conv=True),
            "attention_norm": "ln_1",
            "mlp/up": modules.Module("mlp.c_fc", conv=True),
            "mlp/down": modules.Module("mlp.c_proj", conv=True),
            "mlp_norm": "ln_2",
        },
    ),
    "lm_head/projection": "lm_head",
    **decoder_only.LABELS,
}
FIELDS: Fields = {
    "vocab_size": Field(50257, "vocab"),
    "n_positions": Field(1024, "positions.max_length"),
    "n_embd": Field(768, "embed"),
    "n_layer": Field(12, "stack.num_layers"),
    "n_head": Field(12, "attention.num_heads"),
    "n_inner": Field(None, "mlp.hidden", kind=int),
    "activation_function": Field("gelu_new", "mlp.activation", ACTIVATION),
    "resid_pdrop": Field(0.1, "stack.dropout_rate"),
    "layer_norm_epsilon": Field(1e-5, "norm.epsilon"),
    "initializer_range": Field(0.02, "init.stddev"),
    "scale_attn_weights": Field(True),
    "scale_attn_by_inverse_layer_idx": Field(False),
    "add_cross_attention": Field(False),
    "tie_word_embeddings": Field(True),
    "classifier_dropout": Field(None, kind=float),
    **tokens(bos=50256, eos=50256),
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    """Returns ModelSpec's fields; residual dropout serves everywhere."""
    fields.check(foreign.config, add_cross_attention=(False,))
    foreign.parts["mlp"].setdefault("hidden", 4 * foreign.config["n_embd"])
    norm, mlp = LayerNormSpec(**foreign.parts["norm"]), foreign.mlp(use_bias=True)
    decoder = StackSpec(
        blocks=tuple(
            TransformerBlockSpec(attention, mlp, norm=norm) for attention in _attentions(foreign)
        ),
        causal=True,
        position_embedding=LearnedPositionsSpec(**foreign.parts["positions"]),
        final_norm=norm,
        **foreign.parts["stack"],
    )
    init = NormalInitSpec(**foreign.parts["init"], scaled_residuals=True)
    return {"decoder": decoder, "init": init, "start_id": decoder_only.start_id(foreign)}


def _attentions(foreign: Foreign) -> list[AttentionSpec]:
    """Returns attention of all layers, or of each if `scale_attn_by_inverse_layer_idx`."""
    config = foreign.config
    scale = None if config["scale_attn_weights"] else 1.0
    first = foreign.attention(logits_scale=scale, use_bias=True)
    if not config["scale_attn_by_inverse_layer_idx"]:
        return [first]
    scales = [first.scale / (layer + 1) for layer in range(1, config["n_layer"])]
    return [first, *(first.replace(logits_scale=layer_scale) for layer_scale in scales)]


def _extra(spec: ModelSpec) -> dict[str, Any]:
    decoder = fields.stack_of(spec, "decoder")
    return {
        **decoder_only.extra(spec),
        "n_positions": decoder.max_length or FIELDS["n_positions"].default,
        "embd_pdrop": decoder.dropout_rate,
        "attn_pdrop": decoder.dropout_rate,
        "scale_attn_weights": decoder.blocks[0].attention.logits_scale is None,
        "scale_attn_by_inverse_layer_idx": len(decoder.blocks) > 1,
        "eos_token_id": spec.start_id,  # one token is both
    }


FAMILIES = {
    "gpt2": Family(
        "GPT2",
        FIELDS,
        decoder_only.heads(LM),
        _spec_parts,
        _extra,
        functools.partial(
            modules.tensors_of, names=NAMES, tied={"transformer.wte.weight": ("lm_head.weight",)}
        ),
        lm=LM,
        prefix="transformer.",
        # Causal masks, which older versions saved.
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    )
}
