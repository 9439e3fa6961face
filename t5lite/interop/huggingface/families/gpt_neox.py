"""GPT-NeoX: GPT-NeoX-20B and Pythia."""

import functools
from typing import Any

from t5lite.interop.huggingface.families import decoder_only, family, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.rope import rope_config, rotary_spec
from t5lite.interop.tensors import Source, Tensor
from t5lite.layers import AttentionSpec, LayerNormSpec, MlpSpec, SmallInitSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

CLASSES = "GPTNeoX"
HEADS = decoder_only.heads()
NAMES = decoder_only.Names(
    "gpt_neox.embed_in.weight",
    "gpt_neox.layers.{}",
    "gpt_neox.final_layer_norm",
    {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention": {"fused": "attention.query_key_value", "output": "attention.dense"},
        "mlp": {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    },
    # Of versions 4 and 5 of transformers, which both read the first.
    ("embed_out.weight", "lm_head.weight"),
)
# Of transformers' config class: what equals them may be left out of config.json.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Dropout is that of residuals, everywhere."""
    config = {**DEFAULTS, **config}
    embed, heads = config["hidden_size"], config["num_attention_heads"]
    norm = LayerNormSpec(config["layer_norm_eps"])
    block = TransformerBlockSpec(
        AttentionSpec(
            heads,
            embed // heads,
            use_bias=config["attention_bias"],
            rotary=rotary_spec(
                config, theta=config["rotary_emb_base"], fraction=config["rotary_pct"]
            ),
        ),
        MlpSpec(
            config["intermediate_size"],
            activation(config["hidden_act"], "hidden_act"),
            use_bias=True,
        ),
        norm=norm,
        parallel=config["use_parallel_residual"],
    )
    return decoder_only.model_spec(
        config,
        source,
        CLASSES,
        HEADS,
        embed=embed,
        decoder=StackSpec(
            config["num_hidden_layers"],
            (block,),
            causal=True,
            final_norm=norm,
            dropout_rate=config["hidden_dropout"],
        ),
        init=SmallInitSpec(),
    )


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    decoder = family.stack_of(spec, "decoder")
    block = decoder.blocks[0]
    mlp = family.expect(block.mlp, MlpSpec, "mlp")
    rope = rope_config(block.attention.rotary)
    # GPT-NeoX has names of its own for two of them.
    rope["rotary_emb_base"] = rope.pop("rope_theta", DEFAULTS["rotary_emb_base"])
    rope["rotary_pct"] = rope.pop("partial_rotary_factor", 1.0)
    return {
        **decoder_only.fields(spec, CLASSES),
        "hidden_size": spec.embed,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": mlp.hidden,
        "hidden_act": activation_name(mlp.activation, gelu_tanh="gelu_fast"),
        "hidden_dropout": decoder.dropout_rate,
        "attention_dropout": decoder.dropout_rate,
        "layer_norm_eps": decoder_only.epsilon(block.norm),
        "use_parallel_residual": block.parallel,
        "attention_bias": block.attention.use_bias,
        "eos_token_id": spec.start_id,  # one token is both
        **rope,
    }


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    return decoder_only.tensors(
        spec, NAMES, attention=functools.partial(modules.fused_attention, by_head=True)
    )


FAMILIES = {
    "gpt_neox": family.Family(
        spec,
        config,
        tensors,
        CLASSES,
        prefix="gpt_neox.",
        # Causal masks and frequencies, which older versions saved.
        ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    )
}
