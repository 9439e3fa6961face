"""LLaMA (1 to 3.2) and Mistral."""

import dataclasses
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, family, gemma
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import AttentionSpec, MlpSpec, NormalInitSpec, RMSNormSpec, SpansHeadSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

CLASSES = {"llama": "Llama", "mistral": "Mistral"}
HEADS = decoder_only.heads()
# Of transformers' config classes: what equals them may be left out of config.json.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
}
DEFAULTS["mistral"] = {
    **DEFAULTS["llama"],
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
# What a class has no such field for.
FIXED: dict[str, dict[str, Any]] = {
    "llama": {"sliding_window": None},
    "mistral": {"attention_bias": False, "mlp_bias": False},
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Attention's dropout stands for all dropout."""
    model_type = config["model_type"]
    config = {**DEFAULTS[model_type], **config, **FIXED[model_type]}
    norm = RMSNormSpec(config["rms_norm_eps"])
    block = TransformerBlockSpec(
        attention_spec(config),
        MlpSpec(
            config["intermediate_size"],
            activation(config["hidden_act"], "hidden_act"),
            gated=True,
            use_bias=config["mlp_bias"],
        ),
        norm=norm,
    )
    return decoder_only.model_spec(
        config,
        source,
        CLASSES[model_type],
        HEADS,
        embed=config["hidden_size"],
        decoder=StackSpec(
            config["num_hidden_layers"],
            (block,),
            causal=True,
            final_norm=norm,
            dropout_rate=config["attention_dropout"],
        ),
        init=NormalInitSpec(config["initializer_range"]),
    )


def attention_spec(config: family.Config) -> AttentionSpec:
    """Returns the attention of a config with its defaults."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    window, rotary = config["sliding_window"], rotary_spec(config)
    if rotary.fraction != 1.0:
        raise family.unsupported("partial_rotary_factor", rotary.fraction, [1.0])
    kinds = sorted(set(config.get("layer_types") or ()) - {"sliding_attention"})
    if window is not None and kinds:
        raise family.unsupported(
            "layer_types", kinds, ["sliding_attention"], "beside sliding_window"
        )
    return AttentionSpec(
        heads,
        config["head_dim"] or config["hidden_size"] // heads,
        None if kv_heads == heads else kv_heads,
        use_bias=config["attention_bias"],
        rotary=rotary,
        # Theirs counts the keys that are seen, the token's own among them.
        window=None if window is None else window - 1,
    )


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    decoder = family.stack_of(spec, "decoder")
    block = decoder.blocks[0]
    attention, mlp = block.attention, family.expect(block.mlp, MlpSpec, "mlp")
    fields = {
        **decoder_only.fields(spec, CLASSES[spec.family]),
        "hidden_size": spec.embed,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation_name(mlp.activation, gelu_tanh="gelu_pytorch_tanh"),
        "rms_norm_eps": decoder_only.epsilon(block.norm),
        "attention_dropout": decoder.dropout_rate,
        # Of all that are published, the end follows the beginning.
        "eos_token_id": min((spec.start_id or 0) + 1, spec.vocab - 1),
        **rope_config(attention.rotary),
    }
    if spec.family == "mistral":
        window = attention.window
        return {**fields, "sliding_window": None if window is None else window + 1}
    return {**fields, "attention_bias": attention.use_bias, "mlp_bias": mlp.use_bias}


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    result = decoder_only.tensors(spec, gemma.names(gemma.NORMS))
    if spec.family == "mistral" or not any(isinstance(head, SpansHeadSpec) for head in spec.heads):
        return result
    # LlamaForQuestionAnswering alone calls its base so.
    renamed = ((tensor, tensor.name.removeprefix("model.")) for tensor in result)
    return [
        tensor
        if tensor.name == name
        else dataclasses.replace(tensor, name=f"transformer.{name}", aliases=(tensor.name,))
        for tensor, name in renamed
    ]


FAMILIES = {
    name: family.Family(
        spec,
        config,
        tensors,
        prefix="model.",
        classes=CLASSES[name],
        # Frequencies, which older versions saved.
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        renamed=((r"^transformer\.", "model."),),
    )
    for name in CLASSES
}
