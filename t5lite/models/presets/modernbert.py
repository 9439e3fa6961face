"""ModernBERT."""

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    MaskedLMHeadSpec,
    RotarySpec,
    TruncatedNormalInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import Sizes
from t5lite.models.spec import ModelSpec, StackSpec


def modernbert(sizes: Sizes) -> ModelSpec:
    """Returns a ModernBERT: every third layer sees everything, the others 64 tokens either way.

    Source: Warner et al. 2024, arXiv:2412.13663, §2.1 and table 4; initial values, appendix A
      ("Megatron initialization"), which are for the head's dense layer as for the others here.
    """
    norm = LayerNormSpec(1e-5, use_bias=False)

    def block(attention: AttentionSpec, *, attention_norm: bool = True) -> TransformerBlockSpec:
        mlp = sizes.mlp("gelu", gated=True)
        return TransformerBlockSpec(attention, mlp, norm=norm, attention_norm=attention_norm)

    everywhere = sizes.attention(rotary=RotarySpec(160_000.0))
    nearby = sizes.attention(rotary=RotarySpec(10_000.0), window=64)
    encoder = StackSpec(
        sizes.num_layers,
        (block(nearby), block(nearby), block(everywhere)),
        causal=False,
        first_blocks=(block(everywhere, attention_norm=False),),
        embedding_norm=norm,
        final_norm=norm,
    )
    return ModelSpec(
        family="modernbert",
        vocab=50368,
        embed=sizes.embed,
        encoder=encoder,
        heads=(MaskedLMHeadSpec("gelu", norm, use_bias=False),),
        init=TruncatedNormalInitSpec(0.02, scaled_residuals=True),
    )


PRESETS: dict[str, ModelSpec] = {
    "modernbert_base": modernbert(Sizes(768, 22, 12, 1152)),
    "modernbert_large": modernbert(Sizes(1024, 28, 16, 2624)),
}
