"""T5, mT5, UMT5 and Switch: odd small models, and the published sizes with their parameters."""

from typing import Any

_T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 7,  # not d_model / num_heads
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,  # so that distances in the rows fall beyond it
    "layer_norm_epsilon": 1e-5,
    "decoder_start_token_id": 0,
}
_ALONE = {"is_encoder_decoder": False}
# transformers 5 ties the logits all the same, unless a file has a table of their own.
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_MT5 = {**_T5, **_GATED, "model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
_UMT5 = {**_T5, **_GATED, "model_type": "umt5", "architectures": ["UMT5ForConditionalGeneration"]}
# Few slots, so that tokens are dropped: an expert's share of 13 tokens is more than 4.
_SWITCH = {
    **_T5,
    "architectures": ["SwitchTransformersForConditionalGeneration"],
    "model_type": "switch_transformers",
    "d_ff": 20,
    "num_experts": 3,
    "expert_capacity": 3,
    "num_sparse_encoder_layers": 1,  # of 3: the second
    "num_sparse_decoder_layers": 2,  # of 4: every other
}


CASES: dict[str, dict[str, Any]] = {
    "t5_1_0": _T5,
    "t5_1_1": {**_T5, **_GATED},
    # As transformers 5 writes T5 v1.1.
    "t5_tied_unscaled": {**_T5, "scale_decoder_outputs": False, "decoder_start_token_id": 3},
    "t5_gated_silu": {**_T5, "feed_forward_proj": "gated-silu", "initializer_factor": 0.5},
    "t5_gelu": {**_T5, "feed_forward_proj": "gelu", "num_decoder_layers": None},
    "t5_gated_exact_gelu": {
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "is_gated_act": True,
    },
    "t5_shallow_decoder": {**_T5, **_GATED, "num_layers": 4, "num_decoder_layers": 2},  # ByT5
    "t5_base": {**_T5, "architectures": ["T5Model"]},
    "t5_encoder": {**_T5, **_GATED, "architectures": ["T5EncoderModel"], **_ALONE},
    "t5_token_labels": {
        **_T5,
        **_ALONE,
        "architectures": ["T5ForTokenClassification"],
        "id2label": {"0": "O", "1": "B", "2": "I"},
        "label2id": {"O": 0, "B": 1, "I": 2},
        "classifier_dropout": 0.2,
    },
    "mt5": _MT5,
    "mt5_encoder": {**_MT5, "architectures": ["MT5EncoderModel"], **_ALONE},
    "umt5": _UMT5,
    "umt5_tied": {**_UMT5, "tie_word_embeddings": True},
    "umt5_encoder": {**_UMT5, "architectures": ["UMT5EncoderModel"], **_ALONE},
    "switch": _SWITCH,
    "switch_room_for_all": {**_SWITCH, "expert_capacity": 64, "dense_act_fn": "gelu_new"},
    "switch_everywhere": {
        **_SWITCH,
        "num_sparse_encoder_layers": 3,
        "num_decoder_layers": 3,
        "num_sparse_decoder_layers": 3,
    },
    "switch_steps": {**_SWITCH, "encoder_sparse_step": 2, "decoder_sparse_step": 0},
    "switch_none_asked": {
        **_SWITCH,
        "num_sparse_encoder_layers": 0,
        "num_sparse_decoder_layers": 7,
        "router_jitter_noise": 0.0,
        "router_aux_loss_coef": 0.01,
        "router_z_loss_coef": 0.0,
    },
    "switch_base": {**_SWITCH, "architectures": ["SwitchTransformersModel"]},
    "switch_encoder": {**_SWITCH, "architectures": ["SwitchTransformersEncoderModel"], **_ALONE},
}


def _t5(embed: int, hidden: int, num_layers: int, num_heads: int, **changes: Any) -> dict[str, Any]:
    sizes = {"d_model": embed, "d_ff": hidden, "num_layers": num_layers, "num_heads": num_heads}
    start = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    return {**start, "vocab_size": 32128, "d_kv": 64, **sizes, **changes}


_V1_1 = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_MULTILINGUAL = {
    "mt5": {**_GATED, "architectures": ["MT5ForConditionalGeneration"], "vocab_size": 250112},
    "umt5": {**_GATED, "architectures": ["UMT5ForConditionalGeneration"], "vocab_size": 256384},
}


def _multilingual(model_type: str, size: str) -> dict[str, Any]:
    return _t5(*_V1_1[size], **_MULTILINGUAL[model_type], model_type=model_type)


def _byt5(*sizes: int, num_decoder_layers: int) -> dict[str, Any]:
    return _t5(*sizes, vocab_size=384, num_decoder_layers=num_decoder_layers, **_GATED)


def _switch(*sizes: int, num_experts: int) -> dict[str, Any]:
    num_layers = sizes[2]
    return _t5(
        *sizes,
        architectures=["SwitchTransformersForConditionalGeneration"],
        model_type="switch_transformers",
        num_decoder_layers=num_layers,
        num_sparse_encoder_layers=num_layers // 2,
        num_sparse_decoder_layers=num_layers // 2,
        num_experts=num_experts,
    )


# With the logits' own table, which transformers leaves out of the models it makes from a config.
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "t5_small": (_t5(512, 2048, 6, 8), 60506624),
    "t5_base": (_t5(768, 3072, 12, 12), 222903552),
    "t5_large": (_t5(1024, 4096, 24, 16), 737668096),
    "t5_3b": (_t5(1024, 16384, 24, 32, d_kv=128), 2851598336),
    "t5_11b": (_t5(1024, 65536, 24, 128, d_kv=128), 11307321344),
    "t5_1_1_small": (_t5(*_V1_1["small"], **_GATED), 76961152),
    "t5_1_1_base": (_t5(*_V1_1["base"], **_GATED), 247577856),
    "t5_1_1_large": (_t5(*_V1_1["large"], **_GATED), 783150080),
    "t5_1_1_xl": (_t5(*_V1_1["xl"], **_GATED), 2849757184),
    "t5_1_1_xxl": (_t5(*_V1_1["xxl"], **_GATED), 11135332352),
    "flan_t5_small": (_t5(*_V1_1["small"], **_GATED), 76961152),
    "flan_t5_base": (_t5(*_V1_1["base"], **_GATED), 247577856),
    "flan_t5_large": (_t5(*_V1_1["large"], **_GATED), 783150080),
    "flan_t5_xl": (_t5(*_V1_1["xl"], **_GATED), 2849757184),
    "flan_t5_xxl": (_t5(*_V1_1["xxl"], **_GATED), 11135332352),
    "mt5_small": (_multilingual("mt5", "small"), 300176768),
    "mt5_base": (_multilingual("mt5", "base"), 582401280),
    "mt5_large": (_multilingual("mt5", "large"), 1229581312),
    "mt5_xl": (_multilingual("mt5", "xl"), 3742619648),
    "mt5_xxl": (_multilingual("mt5", "xxl"), 12921057280),
    "umt5_small": (_multilingual("umt5", "small"), 306601984),
    "umt5_base": (_multilingual("umt5", "base"), 592043520),
    "umt5_xl": (_multilingual("umt5", "xl"), 3768356864),
    "umt5_xxl": (_multilingual("umt5", "xxl"), 12972531712),
    "byt5_small": (_byt5(1472, 3584, 12, 6, num_decoder_layers=4), 299637760),
    "byt5_base": (_byt5(1536, 3968, 18, 12, num_decoder_layers=6), 581653248),
    "byt5_large": (_byt5(1536, 3840, 36, 16, num_decoder_layers=12), 1228183552),
    "byt5_xl": (_byt5(2560, 6720, 36, 32, num_decoder_layers=12), 3737801728),
    "byt5_xxl": (_byt5(4672, 12352, 36, 64, num_decoder_layers=12), 12906899328),
    "switch_base_8": (_switch(768, 3072, 12, 12, num_experts=8), 619339008),
    "switch_base_16": (_switch(768, 3072, 12, 12, num_experts=16), 1072397568),
    "switch_base_32": (_switch(768, 3072, 12, 12, num_experts=32), 1978514688),
    "switch_base_64": (_switch(768, 3072, 12, 12, num_experts=64), 3790748928),
    "switch_base_128": (_switch(768, 3072, 12, 12, num_experts=128), 7415217408),
    "switch_base_256": (_switch(768, 3072, 12, 12, num_experts=256), 14664154368),
    "switch_large_128": (_switch(1024, 4096, 24, 16, num_experts=128), 26309291008),
}
# Architectures that transformers' class cannot express: gated experts, unscaled logits from a table
# of their own.
ELSEWHERE: dict[str, int] = {"switch_xxl_128": 394675073024, "switch_c_2048": 1571327875360}
