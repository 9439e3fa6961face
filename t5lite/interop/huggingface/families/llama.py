"""LLaMA (1 to 3.2) and Mistral."""

import dataclasses
import functools
from typing import Any

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import decoder_only, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.family import Config, Family, initial_stddev
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import AttentionSpec, MlpSpec, NormalInitSpec, RMSNormSpec, SpansHeadSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

NAMES = {"llama": "Llama", "mistral": "Mistral"}
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


def spec(config: Config, source: Source, *, model_type: str) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Attention's dropout stands for all dropout."""
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
    name = NAMES[model_type]
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        decoder=StackSpec(
            config["num_hidden_layers"],
            (block,),
            causal=True,
            final_norm=norm,
            dropout_rate=config["attention_dropout"],
        ),
        heads=decoder_only.heads(config, f"{name}ForCausalLM", f"{name}Model"),
        start_id=decoder_only.start_id(config),
        init=NormalInitSpec(config["initializer_range"]),
    )


def attention_spec(config: Config) -> AttentionSpec:
    """Returns the attention of a config with its defaults."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    window, rotary = config["sliding_window"], rotary_spec(config)
    if rotary.fraction != 1.0:
        raise InputError(f"partial_rotary_factor = {rotary.fraction} is not modelled; 1.0 is")
    kinds = sorted(set(config.get("layer_types") or ()) - {"sliding_attention"})
    if window is not None and kinds:
        raise InputError(f"layer_types with {kinds[0]!r} beside sliding_window is not modelled")
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
    decoder = decoder_only.decoder_of(spec)
    block = decoder.blocks[0]
    mlp = decoder_only.dense(block)
    attention, name = block.attention, NAMES[spec.family]
    fields = {
        "model_type": spec.family,
        **decoder_only.head_fields(spec, f"{name}ForCausalLM", f"{name}Model"),
        "vocab_size": spec.vocab,
        "hidden_size": spec.embed,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation_name(mlp.activation, gelu_tanh="gelu_pytorch_tanh"),
        "rms_norm_eps": decoder_only.epsilon(block.norm),
        "initializer_range": initial_stddev(spec),
        "attention_dropout": decoder.dropout_rate,
        "bos_token_id": spec.start_id,
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
    decoder, embed = decoder_only.decoder_of(spec), spec.embed
    tied = decoder_only.tied_names(spec, "lm_head.weight")
    found = modules.table(
        "model.embed_tokens.weight", "token_embedding", spec.vocab, embed, aliases=tied
    )
    for layer, block in enumerate(decoder.every_block):
        place, index = decoder.place(layer)
        theirs, ours = f"model.layers.{layer}", f"decoder/{place}"
        projections = {"query": "q", "key": "k", "value": "v", "output": "o"}
        names = {part: f"{theirs}.self_attn.{letter}_proj" for part, letter in projections.items()}
        found += modules.attention(names, f"{ours}/attention", block.attention, embed, layer=index)
        names = {part: f"{theirs}.mlp.{part}_proj" for part in ("gate", "up", "down")}
        found += modules.mlp(names, f"{ours}/mlp", decoder_only.dense(block), embed, layer=index)
        for name, path in (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "mlp_norm"),
        ):
            found += modules.norm(
                f"{theirs}.{name}", f"{ours}/{path}", block.norm, embed, layer=index
            )
    final = decoder.final_norm or RMSNormSpec()
    found += modules.norm("model.norm", "decoder/final_norm", final, embed)
    if spec.family == "llama" and any(isinstance(head, SpansHeadSpec) for head in spec.heads):
        # LlamaForQuestionAnswering alone calls its base so.
        found = [
            dataclasses.replace(tensor, name=f"transformer.{name}", aliases=(tensor.name,))
            for tensor in found
            for name in [tensor.name.removeprefix("model.")]
        ]
    found += decoder_only.labelled_tensors(spec, tagger="score")
    return found + decoder_only.lm_head(spec, "lm_head.weight")


FAMILIES = {
    name: Family(
        functools.partial(spec, model_type=name),
        config,
        tensors,
        prefix="model.",
        base=f"{NAMES[name]}Model",
        # Frequencies, which older versions saved.
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        renamed=((r"^transformer\.", "model."),),
    )
    for name in NAMES
}
