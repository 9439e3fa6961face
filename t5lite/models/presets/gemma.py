"""Gemma, Gemma 2 and T5Gemma."""

from typing import Any

from t5lite.layers import (
    AttentionSpec,
    LMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    RMSNormSpec,
    RotarySpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec

VOCAB, BOS = 256_000, 2


def gemma(
    *, embed: int, num_layers: int, num_heads: int, num_kv_heads: int, hidden: int
) -> ModelSpec:
    """Returns a Gemma: heads of 256, GeGLU, norms whose parameter is 0 for 1, scaled embeddings.

    Source: Gemma Team 2024, arXiv:2403.08295, §2 and table 1; initial values, of which no report of
      the family speaks: `initializer_range` of the released config.json.
    """
    norm = RMSNormSpec(unit_offset=True)
    block = TransformerBlockSpec(
        AttentionSpec(
            num_heads,
            256,
            None if num_kv_heads == num_heads else num_kv_heads,
            rotary=RotarySpec(),
        ),
        MlpSpec(hidden, "gelu_tanh", gated=True),
        norm=norm,
    )
    decoder = StackSpec(
        num_layers, (block,), causal=True, embedding_scale=embed**0.5, final_norm=norm
    )
    return ModelSpec(
        family="gemma",
        vocab=VOCAB,
        embed=embed,
        decoder=decoder,
        heads=(LMHeadSpec(tied=True),),
        start_id=BOS,
        init=NormalInitSpec(0.02),
    )


def gemma2_stack(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    hidden: int,
    head_dim: int = 256,
    logits_scale: float | None = None,
    causal: bool = True,
    crossed: bool = False,
) -> StackSpec:
    """Returns Gemma 2's layers: norms around sublayers, capped logits, every other one a window.

    Source: Gemma Team 2024, arXiv:2408.00118, §2 and table 1.
    """
    norm = RMSNormSpec(unit_offset=True)
    attention = AttentionSpec(
        num_heads,
        head_dim,
        None if num_kv_heads == num_heads else num_kv_heads,
        logits_scale=logits_scale,
        rotary=RotarySpec(),
        logits_softcap=50.0,
    )

    def block(window: int | None) -> TransformerBlockSpec:
        return TransformerBlockSpec(
            attention.replace(window=window),
            MlpSpec(hidden, "gelu_tanh", gated=True),
            norm=norm,
            cross_attention=attention.replace(rotary=None) if crossed else None,
            norm_placement="around",
        )

    # 4,096 keys with the token's own, or as many to either side.
    blocks = (block(4095 if causal else 4096), block(None))
    return StackSpec(num_layers, blocks, causal=causal, embedding_scale=embed**0.5, final_norm=norm)


def gemma2(*, embed: int, **sizes: Any) -> ModelSpec:
    """Returns a Gemma 2; see `gemma2_stack`."""
    return ModelSpec(
        family="gemma2",
        vocab=VOCAB,
        embed=embed,
        decoder=gemma2_stack(embed=embed, **sizes),
        heads=(LMHeadSpec(tied=True, softcap=30.0),),
        start_id=BOS,
        init=NormalInitSpec(0.02),
    )


def t5gemma(encoder: dict[str, Any], decoder: dict[str, Any]) -> ModelSpec:
    """Returns a T5Gemma: stacks of Gemma 2's layers, perhaps of two sizes, each with its table.

    Source: Zhang et al. 2025, arXiv:2504.06225, §3 and table 1.
    """
    stack = gemma2_stack(**encoder, causal=False)
    if encoder["embed"] != decoder["embed"]:
        stack = stack.replace(embed=encoder["embed"])
    return ModelSpec(
        family="t5gemma",
        vocab=VOCAB,
        embed=decoder["embed"],
        encoder=stack,
        decoder=gemma2_stack(**decoder, crossed=True),
        heads=(LMHeadSpec(tied=True, softcap=30.0),),
        shared_embedding=False,
        start_id=BOS,
        init=NormalInitSpec(0.02),
    )


def _sizes(
    embed: int, num_layers: int, num_heads: int, num_kv_heads: int, hidden: int, **others: Any
) -> dict[str, Any]:
    sizes = {"embed": embed, "num_layers": num_layers, "num_heads": num_heads, "hidden": hidden}
    return {**sizes, "num_kv_heads": num_kv_heads, **others}


_2B = _sizes(2304, 26, 8, 4, 9216)
_9B = _sizes(3584, 42, 16, 8, 14336)
_27B = _sizes(4608, 46, 32, 16, 36864, head_dim=128, logits_scale=144**-0.5)

PRESETS: dict[str, ModelSpec] = {
    "gemma_2b": gemma(embed=2048, num_layers=18, num_heads=8, num_kv_heads=1, hidden=16384),
    "gemma_7b": gemma(embed=3072, num_layers=28, num_heads=16, num_kv_heads=16, hidden=24576),
    "gemma2_2b": gemma2(**_2B),
    "gemma2_9b": gemma2(**_9B),
    "gemma2_27b": gemma2(**_27B),
}
PRESETS |= {
    f"t5gemma_{name}_{name}": t5gemma(sizes, sizes)
    for name, sizes in {
        "s": _sizes(512, 8, 8, 8, 1024, head_dim=64),
        "b": _sizes(768, 12, 12, 12, 2048, head_dim=64),
        "l": _sizes(1024, 24, 16, 16, 2816, head_dim=64),
        "ml": _sizes(1152, 26, 4, 4, 6912),
        "xl": _sizes(2048, 24, 32, 32, 5120, head_dim=64),
        "2b": _2B,
        "9b": _9B,
    }.items()
}
PRESETS["t5gemma_9b_2b"] = t5gemma(_9B, _2B)
