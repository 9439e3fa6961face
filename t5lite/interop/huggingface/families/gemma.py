"""Gemma and Gemma 2; their layers serve T5Gemma, LLaMA and Mistral too."""

from typing import Any

from t5lite.interop.huggingface.families import decoder_only, family
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.layer_types import FULL, SLIDING, layer_types, period
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import AttentionSpec, LMHeadSpec, MlpSpec, NormalInitSpec, RMSNormSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

CLASSES = {"gemma": "Gemma", "gemma2": "Gemma2"}
HEADS = {
    "gemma": decoder_only.heads(spans=False),
    "gemma2": decoder_only.heads(softcap="final_logit_softcapping", spans=False),
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
NORMS_AROUND = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
# Of transformers' config classes: what equals them may be left out of config.json.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
}
DEFAULTS["gemma2"] = {
    **DEFAULTS["gemma"],
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Attention's dropout stands for all dropout."""
    model_type = config["model_type"]
    config = {**DEFAULTS[model_type], **config}
    family.check_fields(config, use_bidirectional_attention=(None,))
    return decoder_only.model_spec(
        config,
        source,
        CLASSES[model_type],
        HEADS[model_type],
        embed=config["hidden_size"],
        decoder=stack_spec(config, around=model_type == "gemma2", causal=True),
        init=NormalInitSpec(config["initializer_range"]),
    )


def stack_spec(
    config: family.Config,
    *,
    around: bool,
    causal: bool,
    crossed: bool = False,
    dropout: str = "attention_dropout",
) -> StackSpec:
    """Returns a stack of Gemma layers.

    Args:
      config: with its defaults.
      around: whether norms stand on both sides of the sublayers, as from Gemma 2 on.
      causal: whether it sees one side only.
      crossed: whether it attends over an encoder.
      dropout: the field of its rate.
    """
    norm = RMSNormSpec(config["rms_norm_eps"], unit_offset=True)
    # Gemma 1 has "gelu" in its releases and means this.
    name = config.get("hidden_activation") or "gelu_pytorch_tanh"
    mlp = MlpSpec(config["intermediate_size"], activation(name, "hidden_activation"), gated=True)

    def block(kind: str) -> TransformerBlockSpec:
        attention = attention_spec(config, sliding=kind == SLIDING, causal=causal)
        cross = attention.replace(rotary=None, window=None) if crossed else None
        placement: Any = "around" if around else "before"
        return TransformerBlockSpec(
            attention, mlp, norm=norm, cross_attention=cross, norm_placement=placement
        )

    num_layers = config["num_hidden_layers"]
    # Gemma 2's: a window in the first layer and every other one.
    windowed = config.get("sliding_window") is not None
    every_other = [SLIDING if windowed and n % 2 == 0 else FULL for n in range(num_layers)]
    return StackSpec(
        num_layers,
        tuple(block(kind) for kind in period(layer_types(config, every_other))),
        causal=causal,
        embedding_scale=config["hidden_size"] ** 0.5,
        final_norm=norm,
        dropout_rate=float(config[dropout] or 0.0),
    )


def attention_spec(config: family.Config, *, sliding: bool, causal: bool) -> AttentionSpec:
    """Returns the attention of a layer that sees everything, or a window."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    scalar, window = config.get("query_pre_attn_scalar"), None
    if sliding:
        # One-sided, theirs counts the keys that are seen, the token's own among them; two-sided,
        # from transformers 5 on, it is the distance (4 had one less).
        window = config["sliding_window"] - (1 if causal else 0)
    return AttentionSpec(
        heads,
        config["head_dim"],
        None if kv_heads == heads else kv_heads,
        logits_scale=None if scalar in (None, config["head_dim"]) else scalar**-0.5,
        use_bias=config["attention_bias"],
        rotary=rotary_spec(config),
        window=window,
        logits_softcap=config.get("attn_logit_softcapping"),
    )


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    decoder = family.stack_of(spec, "decoder")
    fields = {
        **decoder_only.fields(spec, CLASSES[spec.family]),
        **stack_config(decoder, spec.embed, causal=True),
        "attention_dropout": decoder.dropout_rate,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if spec.family == "gemma":
        # Fields that the class lacks.
        for field in ("sliding_window", "layer_types", "attn_logit_softcapping"):
            del fields[field]
        del fields["query_pre_attn_scalar"]
        fields["hidden_act"] = fields["hidden_activation"]
    else:
        head = spec.heads[0] if spec.heads else None
        softcap = head.softcap if isinstance(head, LMHeadSpec) else 30.0
        fields["final_logit_softcapping"] = softcap
    return fields


def stack_config(stack: StackSpec, embed: int, *, causal: bool) -> dict[str, Any]:
    """Returns the fields of a stack's config."""
    blocks = stack.every_block
    block, windows = blocks[0], [b.attention.window for b in blocks if b.attention.window]
    attention, mlp = block.attention, family.expect(block.mlp, MlpSpec, "mlp")
    scale = attention.logits_scale
    scalar = attention.head_dim if scale is None else scale**-2
    return {
        "hidden_size": embed,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_activation": activation_name(mlp.activation, gelu_tanh="gelu_pytorch_tanh"),
        "rms_norm_eps": decoder_only.epsilon(block.norm),
        "attention_bias": attention.use_bias,
        # An integer in their class.
        "query_pre_attn_scalar": round(scalar),
        "attn_logit_softcapping": attention.logits_softcap,
        "sliding_window": windows[0] + (1 if causal else 0) if windows else 4096,
        "layer_types": [SLIDING if b.attention.window else FULL for b in blocks],
        **rope_config(attention.rotary),
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    around = family.stack_of(spec, "decoder").blocks[0].norm_placement == "around"
    return decoder_only.tensors(spec, names(NORMS_AROUND if around else NORMS))


def names(norms: dict[str, str]) -> decoder_only.Names:
    """Returns the names of a decoder's tensors; see `layer_names`."""
    return decoder_only.Names(
        "model.embed_tokens.weight",
        "model.layers.{}",
        "model.norm",
        layer_names(norms),
        ("lm_head.weight",),
        tagger="score",
    )


def layer_names(norms: dict[str, str], *, crossed: bool = False) -> dict[str, Any]:
    """Returns the names of a layer's modules; `norms` are those of its norms by ours."""
    names: dict[str, Any] = {
        "attention": {part: f"self_attn.{name}" for part, name in _PROJECTIONS.items()},
        "mlp": {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
        **norms,
    }
    if crossed:
        names["cross_attention"] = {p: f"cross_attn.{name}" for p, name in _PROJECTIONS.items()}
    return names


FAMILIES = {
    name: family.Family(
        spec,
        config,
        tensors,
        prefix="model.",
        classes=CLASSES[name],
        # Frequencies, which older versions saved.
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )
    for name in CLASSES
}
