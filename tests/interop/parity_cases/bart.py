"""BART, mBART, PEGASUS and Marian."""

from typing import Any

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 19,
}
BART = {**TINY, "model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
MBART = {
    **TINY,
    "model_type": "mbart",
    "architectures": ["MBartForConditionalGeneration"],
    "decoder_start_token_id": 5,
}
PEGASUS = {
    **TINY,
    "model_type": "pegasus",
    "architectures": ["PegasusForConditionalGeneration"],
    "activation_function": "relu",
    "scale_embedding": True,
}
MARIAN = {
    **TINY,
    "model_type": "marian",
    "architectures": ["MarianMTModel"],
    "decoder_start_token_id": 96,
    "pad_token_id": 96,
    "activation_function": "swish",
    "scale_embedding": True,
}

CASES: dict[str, dict[str, Any]] = {
    "bart": BART,
    "bart_scaled": {**BART, "scale_embedding": True, "activation_function": "gelu_new"},
    # transformers 5 has three tables then, and a fourth that nothing reads.
    "bart_untied": {**BART, "tie_word_embeddings": False, "activation_function": "relu"},
    "bart_headless": {**BART, "architectures": ["BartModel"], "init_std": 0.05},
    "mbart": {**MBART, "scale_embedding": True},
    "mbart_untied": {**MBART, "tie_word_embeddings": False},
    "mbart_headless": {**MBART, "architectures": ["MBartModel"]},
    "pegasus": PEGASUS,
    "pegasus_unscaled": {**PEGASUS, "scale_embedding": False, "activation_function": "gelu"},
    "pegasus_headless": {**PEGASUS, "architectures": ["PegasusModel"]},
    "marian": MARIAN,
    "marian_untied": {**MARIAN, "tie_word_embeddings": False, "activation_function": "relu"},
    "marian_two_tables": {**MARIAN, "share_encoder_decoder_embeddings": False},
    "marian_two_tables_untied": {
        **MARIAN,
        "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False,
    },
    "marian_headless": {**MARIAN, "architectures": ["MarianModel"]},
}


def _sizes(model_type: str, architecture: str, **sizes: Any) -> dict[str, Any]:
    """Returns a config whose encoder and decoder are alike."""
    found: dict[str, Any] = {"model_type": model_type, "architectures": [architecture]}
    for name, value in sizes.items():
        both = name in ("layers", "attention_heads", "ffn_dim")
        found |= {f"{side}_{name}": value for side in ("encoder", "decoder")} if both else {}
        found |= {} if both else {name: value}
    return found


def _bart(d_model: int, vocab_size: int = 50265, **sizes: int) -> dict[str, Any]:
    return _sizes(
        "bart",
        "BartForConditionalGeneration",
        d_model=d_model,
        vocab_size=vocab_size,
        attention_heads=d_model // 64,
        ffn_dim=4 * d_model,
        **sizes,
    )


def _mbart(vocab_size: int) -> dict[str, Any]:
    architecture = "MBartForConditionalGeneration"
    return _sizes("mbart", architecture, vocab_size=vocab_size, scale_embedding=True)


def _marian(d_model: int, vocab_size: int, activation_function: str) -> dict[str, Any]:
    return _sizes(
        "marian",
        "MarianMTModel",
        d_model=d_model,
        vocab_size=vocab_size,
        layers=6,
        attention_heads=d_model // 64,
        ffn_dim=4 * d_model,
        activation_function=activation_function,
        scale_embedding=True,
        max_position_embeddings=512,
        pad_token_id=vocab_size - 1,
        decoder_start_token_id=vocab_size - 1,
    )


# Numbers are ours. In transformers PEGASUS and Marian count their computed positions, two tables
# of `max_position_embeddings` rows, which are constants here; and the bias of Marian's logits,
# `vocab_size` numbers, is a buffer there.
COUNTS: dict[str, tuple[dict[str, Any], int]] = {
    "bart_base": (_bart(768, layers=6), 139_420_416),
    "bart_large": (_bart(1024, layers=12), 406_291_456),
    "bart_large_cnn": (_bart(1024, 50264, layers=12), 406_290_432),
    "mbart_large_cc25": (_mbart(250027), 610_851_840),
    "mbart_large_50": (_mbart(250054), 610_879_488),
    "pegasus_large": (
        _sizes(
            "pegasus",
            "PegasusForConditionalGeneration",
            vocab_size=96103,
            layers=16,
            scale_embedding=True,
            activation_function="relu",
        ),
        568_699_904,
    ),
    "marian_base": (_marian(512, 58101, "swish"), 73_944_309),
    "marian_big": (_marian(1024, 53017, "relu"), 230_699_801),
}
