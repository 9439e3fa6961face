"""LLaMA 2, 3, 3.1 and 3.2, and Mistral 7B."""

import functools

from t5lite.layers import (
    AttentionSpec,
    Llama3ScalingSpec,
    LMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    RMSNormSpec,
    RotarySpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def llama(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    num_kv_heads: int | None = None,
    vocab: int = 32000,
    rotary: RotarySpec = RotarySpec(),
    window: int | None = None,
    tied_logits: bool = False,
    start_id: int = 1,
    family: str = "llama",
) -> ModelSpec:
    """Returns a LLaMA: a decoder with rotary positions, RMS norms and gated MLPs, no biases.

    Source: Touvron et al. 2023, arXiv:2302.13971, §2.2, and arXiv:2307.09288, §2.2; initial
      values, of which the papers do not speak: `initializer_range` of the released config.json.
    """
    norm = RMSNormSpec(1e-5)
    attention = AttentionSpec(
        num_heads, embed // num_heads, num_kv_heads, rotary=rotary, window=window
    )
    block = TransformerBlockSpec(attention, MlpSpec(hidden, "silu", gated=True), norm=norm)
    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=embed,
        decoder=StackSpec(num_layers, (block,), causal=True, final_norm=norm),
        heads=(LMHeadSpec(tied=tied_logits),),
        start_id=start_id,
        init=NormalInitSpec(0.02),
    )


# Llama Team 2024, arXiv:2407.21783, §3.2, and, for 3.1's and 3.2's positions, the released
# params.json and model cards.
llama3 = functools.partial(
    llama, num_kv_heads=8, vocab=128256, start_id=128000, rotary=RotarySpec(500_000.0)
)
llama3_1 = functools.partial(llama3, rotary=RotarySpec(500_000.0, scaling=Llama3ScalingSpec(8.0)))
llama3_2 = functools.partial(
    llama3, tied_logits=True, rotary=RotarySpec(500_000.0, scaling=Llama3ScalingSpec(32.0))
)
# Jiang et al. 2023, arXiv:2310.06825, §2; a token of v0.1 sees 4096 keys, its own among them.
mistral_7b = functools.partial(
    llama,
    embed=4096,
    num_layers=32,
    num_heads=32,
    hidden=14336,
    num_kv_heads=8,
    family="mistral",
)
PRESETS: dict[str, ModelSpec] = {
    "llama2_7b": llama(embed=4096, num_layers=32, num_heads=32, hidden=11008),
    "llama2_13b": llama(embed=5120, num_layers=40, num_heads=40, hidden=13824),
    "llama2_70b": llama(embed=8192, num_layers=80, num_heads=64, hidden=28672, num_kv_heads=8),
    "llama3_8b": llama3(embed=4096, num_layers=32, num_heads=32, hidden=14336),
    "llama3_70b": llama3(embed=8192, num_layers=80, num_heads=64, hidden=28672),
    "llama3_1_8b": llama3_1(embed=4096, num_layers=32, num_heads=32, hidden=14336),
    "llama3_1_70b": llama3_1(embed=8192, num_layers=80, num_heads=64, hidden=28672),
    "llama3_1_405b": llama3_1(embed=16384, num_layers=126, num_heads=128, hidden=53248),
    "llama3_2_1b": llama3_2(embed=2048, num_layers=16, num_heads=32, hidden=8192),
    "llama3_2_3b": llama3_2(embed=3072, num_layers=28, num_heads=24, hidden=8192),
    "mistral_7b_v0_1": mistral_7b(window=4095),
    "mistral_7b_v0_2": mistral_7b(rotary=RotarySpec(1_000_000.0)),
    "mistral_7b_v0_3": mistral_7b(rotary=RotarySpec(1_000_000.0), vocab=32768),
    "llama_nano": llama(
        embed=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        hidden=320,
        vocab=4096,
        start_id=0,
    ),
}
