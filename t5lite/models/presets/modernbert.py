"""ModernBERT."""

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    RotarySpec,
    TruncatedNormalInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def modernbert(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    vocab: int = 50368,
) -> ModelSpec:
    """Returns a ModernBERT: every third layer sees everything, the others 64 tokens either way.

    Source: Warner et al. 2024, arXiv:2412.13663, §2.1 and table 4; initial values, appendix A
      ("Megatron initialization"), which are for the head's dense layer as for the others here.
    """
    norm = LayerNormSpec(1e-5, use_bias=False)
    mlp = MlpSpec(hidden, "gelu", gated=True)

    def attention(theta: float, window: int | None) -> AttentionSpec:
        return AttentionSpec(num_heads, embed // num_heads, rotary=RotarySpec(theta), window=window)

    everywhere, nearby = attention(160_000.0, None), attention(10_000.0, 64)
    encoder = StackSpec(
        num_layers,
        tuple(TransformerBlockSpec(each, mlp, norm=norm) for each in (nearby, nearby, everywhere)),
        causal=False,
        first_blocks=(TransformerBlockSpec(everywhere, mlp, norm=norm, attention_norm=False),),
        embedding_norm=norm,
        final_norm=norm,
    )
    return ModelSpec(
        family="modernbert",
        vocab=vocab,
        embed=embed,
        encoder=encoder,
        heads=(MaskedLMHeadSpec("gelu", norm, use_bias=False),),
        init=TruncatedNormalInitSpec(0.02, scaled_residuals=True),
    )


PRESETS: dict[str, ModelSpec] = {
    "modernbert_base": modernbert(embed=768, num_layers=22, num_heads=12, hidden=1152),
    "modernbert_large": modernbert(embed=1024, num_layers=28, num_heads=16, hidden=2624),
}
