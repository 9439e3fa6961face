"""PaLM."""

from t5lite.layers import (
    AttentionSpec,
    FanInInitSpec,
    LayerNormSpec,
    LMHeadSpec,
    MlpSpec,
    RotarySpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def palm(*, embed: int, num_layers: int, num_heads: int, vocab: int = 256_000) -> ModelSpec:
    """Returns a PaLM: attention and gated MLP side by side, one key and value head, no biases.

    Each of the two has a norm of its own, where the paper writes one formula for both. The
    weights were not released.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, §2; initial values, §5.
    """
    norm = LayerNormSpec(1e-5, use_bias=False)
    attention = AttentionSpec(num_heads, 256, num_kv_heads=1, rotary=RotarySpec())
    mlp = MlpSpec(4 * embed, "silu", gated=True)
    block = TransformerBlockSpec(attention, mlp, norm=norm, parallel=True)
    return ModelSpec(
        family="palm",
        vocab=vocab,
        embed=embed,
        decoder=StackSpec(num_layers, (block,), causal=True, final_norm=norm),
        heads=(LMHeadSpec(tied=True, logits_scale=None),),
        init=FanInInitSpec(distribution="normal"),
    )


# Table 1.
PRESETS: dict[str, ModelSpec] = {
    "palm_8b": palm(embed=4096, num_layers=32, num_heads=16),
    "palm_62b": palm(embed=8192, num_layers=64, num_heads=32),
    "palm_540b": palm(embed=18432, num_layers=118, num_heads=48),
}
