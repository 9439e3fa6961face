"""GPT-2, GPT-NeoX, LLaMA and Mistral: tiny odd models, and the published sizes."""

from typing import Any

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 97,
    "n_positions": 29,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "bos_token_id": 96,
    "eos_token_id": 96,
}
GPT_NEOX = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
# Texts were of 5 tokens, so that the scaling is at work in those of the tests.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 5,
}
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 50.0,
    "beta_fast": 2.0,
    "beta_slow": 0.1,
}

CASES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2_untied": {
        **GPT2,
        "tie_word_embeddings": False,
        "n_inner": 40,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-3,
    },
    "gpt2_by_layer": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
    "gpt2_unscaled": {**GPT2, "scale_attn_weights": False, "activation_function": "relu"},
    "gpt2_base": {**GPT2, "architectures": ["GPT2Model"]},
    "gpt_neox": GPT_NEOX,
    "gpt_neox_sequential": {
        **GPT_NEOX,
        "use_parallel_residual": False,
        "rotary_pct": 1.0,
        "rotary_emb_base": 500,
        "hidden_act": "gelu_fast",
        "layer_norm_eps": 1e-3,
    },
    "gpt_neox_tied": {
        **GPT_NEOX,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 3.0,
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    },
    "gpt_neox_base": {**GPT_NEOX, "architectures": ["GPTNeoXModel"]},
    "llama": LLAMA,
    "llama_tied": {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama_biases": {
        **LLAMA,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-3,
    },
    "llama_linear": {
        **LLAMA,
        "rope_theta": 200.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    "llama_llama3": {**LLAMA, "rope_theta": 20.0, "rope_scaling": LLAMA3_SCALING},
    "llama_yarn": {**LLAMA, "rope_parameters": YARN},
    "llama_yarn_untruncated": {
        **LLAMA,
        "rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.5},
    },
    "llama_yarn_mscale": {
        **LLAMA,
        "rope_parameters": {**YARN, "mscale": 1.4, "mscale_all_dim": 0.7},
    },
    "llama_base": {**LLAMA, "architectures": ["LlamaModel"]},
    "mistral": {**MISTRAL, "sliding_window": 4},
    "mistral_unwindowed": {
        **MISTRAL,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "mistral_base": {**MISTRAL, "architectures": ["MistralModel"], "sliding_window": 2},
}


def _gpt2(embed: int, layers: int, heads: int, **fields: Any) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": embed,
        "n_layer": layers,
        "n_head": heads,
        **fields,
    }


def _gpt3(embed: int, layers: int, heads: int, **fields: Any) -> dict[str, Any]:
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return _gpt2(embed, layers, heads, n_positions=2048, **dropout, **fields)


def _gpt_neox(embed: int, layers: int, heads: int, vocab: int = 50304) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": embed,
        "intermediate_size": 4 * embed,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "eos_token_id": 0,
    }


def _llama(
    embed: int, hidden: int, layers: int, heads: int, kv_heads: int, **fields: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": embed,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        **fields,
    }


def _llama3(
    embed: int, hidden: int, layers: int, heads: int, factor: float | None = None, **fields: Any
) -> dict[str, Any]:
    scaling = factor and {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _llama(
        embed,
        hidden,
        layers,
        heads,
        8,
        vocab_size=128256,
        bos_token_id=128000,
        eos_token_id=128001,
        max_position_embeddings=131072 if factor else 8192,
        rope_theta=500000.0,
        rope_scaling=scaling,
        **fields,
    )


def _mistral(**fields: Any) -> dict[str, Any]:
    names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    return {**_llama(4096, 14336, 32, 32, 8, **fields), **names}


COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (_gpt2(768, 12, 12), 124_439_808),
    "gpt2_medium": (_gpt2(1024, 24, 16), 354_823_168),
    "gpt2_large": (_gpt2(1280, 36, 20), 774_030_080),
    "gpt2_xl": (_gpt2(1600, 48, 25), 1_557_611_200),
    "distilgpt2": (_gpt2(768, 6, 12), 81_912_576),
    "gpt3_125m": (_gpt3(768, 12, 12), 125_226_240),
    "gpt3_350m": (_gpt3(1024, 24, 16), 355_871_744),
    "gpt3_760m": (_gpt3(1536, 24, 16), 760_300_032),
    "gpt3_1_3b": (_gpt3(2048, 24, 16), 1_315_723_264),
    "gpt3_2_7b": (_gpt3(2560, 32, 32), 2_651_553_280),
    "gpt3_6_7b": (_gpt3(4096, 32, 32), 6_658_404_352),
    "gpt3_13b": (_gpt3(5120, 40, 40), 12_853_386_240),
    "gpt3_175b": (_gpt3(12288, 96, 96), 174_604_259_328),
    "mt_nlg_530b": (
        _gpt3(20480, 105, 128, vocab_size=51200, initializer_range=4e-3),
        529_600_819_200,
    ),
    "gpt_neox_20b": ({**_gpt_neox(6144, 44, 64, 50432), "hidden_act": "gelu_fast"}, 20_554_567_680),
    "pythia_14m": (_gpt_neox(128, 6, 4), 14_067_712),
    "pythia_31m": (_gpt_neox(256, 6, 8), 30_494_720),
    "pythia_70m": (_gpt_neox(512, 6, 8), 70_426_624),
    "pythia_160m": (_gpt_neox(768, 12, 12), 162_322_944),
    "pythia_410m": (_gpt_neox(1024, 24, 16), 405_334_016),
    "pythia_1b": (_gpt_neox(2048, 16, 8), 1_011_781_632),
    "pythia_1_4b": (_gpt_neox(2048, 24, 16), 1_414_647_808),
    "pythia_2_8b": (_gpt_neox(2560, 32, 32), 2_775_208_960),
    "pythia_6_9b": (_gpt_neox(4096, 32, 32, 50432), 6_857_302_016),
    "pythia_12b": (_gpt_neox(5120, 36, 40, 50688), 11_846_072_320),
    "llama2_7b": (_llama(4096, 11008, 32, 32, 32), 6_738_415_616),
    "llama2_13b": (_llama(5120, 13824, 40, 40, 40), 13_015_864_320),
    "llama2_70b": (_llama(8192, 28672, 80, 64, 8), 68_976_648_192),
    "llama3_8b": (_llama3(4096, 14336, 32, 32), 8_030_261_248),
    "llama3_70b": (_llama3(8192, 28672, 80, 64), 70_553_706_496),
    "llama3_1_8b": (_llama3(4096, 14336, 32, 32, 8.0), 8_030_261_248),
    "llama3_1_70b": (_llama3(8192, 28672, 80, 64, 8.0), 70_553_706_496),
    "llama3_1_405b": (_llama3(16384, 53248, 126, 128, 8.0), 405_853_388_800),
    "llama3_2_1b": (_llama3(2048, 8192, 16, 32, 32.0, tie_word_embeddings=True), 1_235_814_400),
    "llama3_2_3b": (_llama3(3072, 8192, 28, 24, 32.0, tie_word_embeddings=True), 3_212_749_824),
    "mistral_7b_v0_1": (_mistral(), 7_241_732_096),
    "mistral_7b_v0_2": (_mistral(sliding_window=None, rope_theta=1000000.0), 7_241_732_096),
    "mistral_7b_v0_3": (
        _mistral(sliding_window=None, rope_theta=1000000.0, vocab_size=32768),
        7_248_023_552,
    ),
}

ELSEWHERE = {  # of one norm more a layer than one formula of the paper would have
    "palm_8b": 8_632_143_872,
    "palm_62b": 62_496_186_368,
    "palm_540b": 540_358_649_856,
}
