"""Gemma, Gemma 2 and T5Gemma."""

import functools

from t5lite.layers import LMHeadSpec, NormalInitSpec, RMSNormSpec, RotarySpec
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import Sizes
from t5lite.models.spec import ModelSpec, StackSpec

_NORM = RMSNormSpec(unit_offset=True)
# Gemma Team 2024, arXiv:2403.08295; initial values, of which no report of the family speaks:
# `initializer_range` of the released config.json.
_model = functools.partial(ModelSpec, vocab=256_000, start_id=2, init=NormalInitSpec(0.02))
_gemma2 = functools.partial(_model, heads=(LMHeadSpec(tied=True, softcap=30.0),))


def gemma(sizes: Sizes) -> ModelSpec:
    """Returns a Gemma: heads of 256, GeGLU, norms whose parameter is 0 for 1, scaled embeddings.

    Source: Gemma Team 2024, arXiv:2403.08295, §2 and table 1.
    """
    block = TransformerBlockSpec(
        sizes.attention(rotary=RotarySpec()), sizes.mlp("gelu_tanh", gated=True), norm=_NORM
    )
    decoder = StackSpec(
        sizes.num_layers,
        (block,),
        causal=True,
        embedding_scale=sizes.embed**0.5,
        final_norm=_NORM,
    )
    heads = (LMHeadSpec(tied=True),)
    return _model(family="gemma", embed=sizes.embed, decoder=decoder, heads=heads)


def gemma2_stack(
    sizes: Sizes,
    *,
    logits_scale: float | None = None,
    causal: bool = True,
    crossed: bool = False,
) -> StackSpec:
    """Returns Gemma 2's layers: norms around sublayers, capped logits, every other one a window.

    Source: Gemma Team 2024, arXiv:2408.00118, §2 and table 1.
    """
    attention = sizes.attention(logits_scale=logits_scale, rotary=RotarySpec(), logits_softcap=50.0)

    def block(window: int | None) -> TransformerBlockSpec:
        return TransformerBlockSpec(
            attention.replace(window=window),
            sizes.mlp("gelu_tanh", gated=True),
            norm=_NORM,
            cross_attention=attention.replace(rotary=None) if crossed else None,
            norm_placement="around",
        )

    # 4,096 keys with the token's own, or as many to either side.
    blocks = (block(4095 if causal else 4096), block(None))
    scale = sizes.embed**0.5
    return StackSpec(
        sizes.num_layers, blocks, causal=causal, embedding_scale=scale, final_norm=_NORM
    )


def gemma2(sizes: Sizes, *, logits_scale: float | None = None) -> ModelSpec:
    decoder = gemma2_stack(sizes, logits_scale=logits_scale)
    return _gemma2(family="gemma2", embed=sizes.embed, decoder=decoder)


def t5gemma(encoder: Sizes, decoder: Sizes) -> ModelSpec:
    """Returns a T5Gemma: Gemma 2's layers, one table of embeddings for each stack.

    Source: Zhang et al. 2025, arXiv:2504.06225, §3 and table 1.
    """
    stack = gemma2_stack(encoder, causal=False)
    if encoder.embed != decoder.embed:
        stack = stack.replace(embed=encoder.embed)
    return _gemma2(
        family="t5gemma",
        embed=decoder.embed,
        encoder=stack,
        decoder=gemma2_stack(decoder, crossed=True),
        shared_embedding=False,
    )


_2B, _9B = Sizes(2304, 26, 8, 9216, 4, 256), Sizes(3584, 42, 16, 14336, 8, 256)

PRESETS: dict[str, ModelSpec] = {
    "gemma_2b": gemma(Sizes(2048, 18, 8, 16384, 1, 256)),
    "gemma_7b": gemma(Sizes(3072, 28, 16, 24576, head_dim=256)),
    "gemma2_2b": gemma2(_2B),
    "gemma2_9b": gemma2(_9B),
    "gemma2_27b": gemma2(Sizes(4608, 46, 32, 36864, 16, 128), logits_scale=144**-0.5),
}
PRESETS |= {
    f"t5gemma_{name}_{name}": t5gemma(sizes, sizes)
    for name, sizes in {
        "s": Sizes(512, 8, 8, 1024),
        "b": Sizes(768, 12, 12, 2048),
        "l": Sizes(1024, 24, 16, 2816),
        "ml": Sizes(1152, 26, 4, 6912, head_dim=256),
        "xl": Sizes(2048, 24, 32, 5120),
        "2b": _2B,
        "9b": _9B,
    }.items()
}
PRESETS["t5gemma_9b_2b"] = t5gemma(_9B, _2B)
