"""Gemma and Gemma 2; their layers serve T5Gemma, LLaMA and Mistral too."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, family, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.layer_types import (
    FULL,
    SLIDING,
    layer_types,
    period,
)
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import AttentionSpec, LMHeadSpec, MlpSpec, NormalInitSpec, RMSNormSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

NAMES = {"gemma": "Gemma", "gemma2": "Gemma2"}
HEADS = {
    "gemma": decoder_only.heads(spans=False),
    "gemma2": decoder_only.heads(softcap="final_logit_softcapping", spans=False),
}
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
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


def spec(config: family.Config, source: Source, *, model_type: str) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Attention's dropout stands for all dropout."""
    config = {**DEFAULTS[model_type], **config}
    family.check_fields(config, use_bidirectional_attention=(None,))
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=config["hidden_size"],
        decoder=stack_spec(config, around=model_type == "gemma2", causal=True),
        heads=family.heads_of(NAMES[model_type], HEADS[model_type], config, source),
        start_id=family.first_id(config, "bos_token_id", "eos_token_id"),
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
        "model_type": spec.family,
        **decoder_only.head_fields(spec, NAMES[spec.family]),
        **stack_config(decoder, spec.embed, causal=True),
        "vocab_size": spec.vocab,
        "initializer_range": family.initial_stddev(spec),
        "attention_dropout": decoder.dropout_rate,
        "bos_token_id": spec.start_id,
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
    decoder = family.stack_of(spec, "decoder")
    tied = ("lm_head.weight",) if modules.is_tied(spec) else ()
    result = modules.table(
        "model.embed_tokens.weight", "token_embedding", spec.vocab, spec.embed, aliases=tied
    )
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if decoder.blocks[0].norm_placement == "around":
        norms = {
            "attention_norm": "input_layernorm",
            "attention_output_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_output_norm": "post_feedforward_layernorm",
        }
    result += stack_tensors("model", "decoder", decoder, spec.embed, norms=norms)
    result += decoder_only.labelled_tensors(spec, tagger="score")
    return result + modules.lm_head(spec, "lm_head.weight")


def stack_tensors(
    theirs: str,
    ours: str,
    stack: StackSpec,
    embed: int,
    *,
    norms: dict[str, str],
    kv_embed: int | None = None,
) -> list[Tensor]:
    """Returns the tensors of a stack's layers and its last norm.

    Args:
      theirs: the stack's name, before `layers` and `norm`.
      ours: its path.
      stack: its spec.
      embed: its width.
      norms: our norms in a layer, and what they call them.
      kv_embed: width of what cross-attention reads; None for no cross-attention.
    """
    names: dict[str, Any] = {
        "attention": {part: f"self_attn.{name}" for part, name in PROJECTIONS.items()},
        "mlp": {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
        **norms,
    }
    if kv_embed is not None:
        names["cross_attention"] = {p: f"cross_attn.{name}" for p, name in PROJECTIONS.items()}
    layer_name = (theirs + ".layers.{}").format
    result = modules.stack_tensors(stack, ours, embed, layer_name, names, kv_embed=kv_embed)
    final = stack.final_norm or RMSNormSpec()
    return result + modules.norm(f"{theirs}.norm", f"{ours}/final_norm", final, embed)


FAMILIES = {
    name: family.Family(
        functools.partial(spec, model_type=name),
        config,
        tensors,
        prefix="model.",
        classes=NAMES[name],
        # Frequencies, which older versions saved.
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )
    for name in NAMES
}
