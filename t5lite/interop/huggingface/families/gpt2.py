"""GPT-2 and DistilGPT2."""

import dataclasses
from collections.abc import Callable
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, family, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.tensors import Source, Tensor, View
from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MlpSpec,
    NormalInitSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

CLASSES, LM = "GPT2", "LMHeadModel"
HEADS = decoder_only.heads(LM)
NAMES = decoder_only.Names(
    "transformer.wte.weight",
    "transformer.h.{}",
    "transformer.ln_f",
    {
        "attention": {"fused": "attn.c_attn", "output": "attn.c_proj"},
        "mlp": {"up": "mlp.c_fc", "down": "mlp.c_proj"},
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
    },
    ("lm_head.weight",),
)
# Of transformers' config class: what equals them may be left out of config.json.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Dropout is that of residuals, everywhere."""
    config = {**DEFAULTS, **config}
    family.check_fields(config, add_cross_attention=(False,))
    norm = LayerNormSpec(config["layer_norm_epsilon"])
    mlp = MlpSpec(
        config["n_inner"] or 4 * config["n_embd"],
        activation(config["activation_function"], "activation_function"),
        use_bias=True,
    )
    decoder = StackSpec(
        config["n_layer"],
        tuple(
            TransformerBlockSpec(layer_attention, mlp, norm=norm)
            for layer_attention in attentions(config)
        ),
        causal=True,
        position_embedding=LearnedPositionsSpec(config["n_positions"]),
        final_norm=norm,
        dropout_rate=config["resid_pdrop"],
    )
    init = NormalInitSpec(config["initializer_range"], scaled_residuals=True)
    return decoder_only.model_spec(
        config, source, CLASSES, HEADS, embed=config["n_embd"], decoder=decoder, init=init
    )


def attentions(config: family.Config) -> list[AttentionSpec]:
    """Returns attention of all layers, or of each if `scale_attn_by_inverse_layer_idx`."""
    heads = config["n_head"]
    head_dim = config["n_embd"] // heads
    scale = None if config["scale_attn_weights"] else 1.0
    first = AttentionSpec(heads, head_dim, logits_scale=scale, use_bias=True)
    if not config["scale_attn_by_inverse_layer_idx"]:
        return [first]
    scales = [first.scale / (layer + 1) for layer in range(1, config["n_layer"])]
    return [first, *(first.replace(logits_scale=layer_scale) for layer_scale in scales)]


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    decoder = family.stack_of(spec, "decoder")
    block = decoder.blocks[0]
    mlp = family.expect(block.mlp, MlpSpec, "mlp")
    return {
        **decoder_only.fields(spec, CLASSES, LM),
        "n_positions": decoder.max_length or DEFAULTS["n_positions"],
        "n_embd": spec.embed,
        "n_layer": decoder.num_layers,
        "n_head": block.attention.num_heads,
        "n_inner": mlp.hidden,
        "activation_function": activation_name(mlp.activation),
        "resid_pdrop": decoder.dropout_rate,
        "embd_pdrop": decoder.dropout_rate,
        "attn_pdrop": decoder.dropout_rate,
        "layer_norm_epsilon": decoder_only.epsilon(block.norm),
        "scale_attn_weights": block.attention.logits_scale is None,
        "scale_attn_by_inverse_layer_idx": len(decoder.blocks) > 1,
        "eos_token_id": spec.start_id,  # one token is both
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    length = family.stack_of(spec, "decoder").max_length or 0
    positions = ("transformer.wpe.weight", "decoder/position_embedding", length, spec.embed)
    table, *others = decoder_only.tensors(
        spec, NAMES, attention=conv1d(modules.fused_attention), mlp=conv1d(modules.mlp)
    )
    return [table, *modules.table(*positions), *others]


def conv1d(make: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """Returns what makes the tensors of `Conv1D`s, `[in, out]`, where `make` has linear layers."""

    def flipped(view: View) -> View:
        return lambda array: view(array.T)

    def conv(tensor: Tensor) -> Tensor:
        if len(tensor.shape) == 1:
            return tensor
        parts = tuple(part._replace(view=flipped(part.view)) for part in tensor.parts)
        return dataclasses.replace(tensor, shape=tensor.shape[::-1], parts=parts)

    return lambda *arguments, **options: [*map(conv, make(*arguments, **options))]


FAMILIES = {
    "gpt2": family.Family(
        spec,
        config,
        tensors,
        CLASSES,
        prefix="transformer.",
        # Causal masks, which older versions saved.
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    )
}
