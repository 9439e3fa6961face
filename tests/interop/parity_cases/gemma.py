"""Gemma, Gemma 2 and T5Gemma."""

_GEMMA = {
    "model_type": "gemma",
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_GEMMA2 = {
    **_GEMMA,
    "model_type": "gemma2",
    "num_hidden_layers": 5,
    "sliding_window": 4,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
}
_STACK = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
}


def _t5gemma(encoder, decoder, **changes):
    return {
        "model_type": "t5gemma",
        "architectures": ["T5GemmaForConditionalGeneration"],
        "vocab_size": 97,
        "encoder": {**_STACK, **encoder},
        "decoder": {**_STACK, "num_hidden_layers": 4, **decoder},
        **changes,
    }


CASES = {
    "gemma": {**_GEMMA, "architectures": ["GemmaForCausalLM"]},
    "gemma_untied": {
        **_GEMMA,
        "architectures": ["GemmaForCausalLM"],
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
        "attention_bias": True,
    },
    "gemma_base_model": {**_GEMMA, "architectures": ["GemmaModel"]},
    "gemma2": {**_GEMMA2, "architectures": ["Gemma2ForCausalLM"]},
    "gemma2_plain": {
        **_GEMMA2,
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention"] * 5,
    },
    "t5gemma": _t5gemma({}, {}),
    "t5gemma_widths": _t5gemma(
        {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}, {}
    ),
    "t5gemma_untied": _t5gemma({}, {"tie_word_embeddings": False}, tie_word_embeddings=False),
}


def _size(model_type, architecture, **changes):
    return {"model_type": model_type, "architectures": [architecture], **changes}


def _sizes(hidden, layers, heads, kv_heads, intermediate, head_dim=256):
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


_2B, _9B = _sizes(2304, 26, 8, 4, 9216), _sizes(3584, 42, 16, 8, 14336)
_T5 = {
    "s": (_sizes(512, 8, 8, 8, 1024, 64), 312517632),
    "b": (_sizes(768, 12, 12, 12, 2048, 64), 591490560),
    "l": (_sizes(1024, 24, 16, 16, 2816, 64), 1241761792),
    "ml": (_sizes(1152, 26, 4, 4, 6912), 2200345344),
    "xl": (_sizes(2048, 24, 32, 32, 5120, 64), 3766980608),
    "2b": (_2B, 5596853760),
    "9b": (_9B, 20333401088),
}


def _pair(encoder, decoder):
    return _size("t5gemma", "T5GemmaForConditionalGeneration", encoder=encoder, decoder=decoder)


COUNTS = {
    "gemma_2b": (_size("gemma", "GemmaForCausalLM", **_sizes(2048, 18, 8, 1, 16384)), 2506172416),
    "gemma_7b": (_size("gemma", "GemmaForCausalLM"), 8537680896),
    "gemma2_2b": (_size("gemma2", "Gemma2ForCausalLM"), 2614341888),
    "gemma2_9b": (_size("gemma2", "Gemma2ForCausalLM", **_9B), 9241705984),
    "gemma2_27b": (
        _size("gemma2", "Gemma2ForCausalLM", **_sizes(4608, 46, 32, 16, 36864, 128)),
        27227128320,
    ),
    **{
        f"t5gemma_{name}_{name}": (_pair(sizes, sizes), count)
        for name, (sizes, count) in _T5.items()
    },
    "t5gemma_9b_2b": (_pair(_9B, _2B), 12292375296),
}
