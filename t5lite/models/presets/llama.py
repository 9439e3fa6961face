"""LLaMA 2, 3, 3.1 and 3.2, and Mistral 7B."""

import functools

from t5lite.layers import Llama3ScalingSpec, LMHeadSpec, NormalInitSpec, RMSNormSpec, RotarySpec
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import Sizes
from t5lite.models.spec import ModelSpec, StackSpec


def llama(
    sizes: Sizes,
    *,
    vocab: int = 32000,
    rotary: RotarySpec = RotarySpec(),
    window: int | None = None,
    tied_logits: bool = False,
    start_id: int = 1,
    family: str = "llama",
) -> ModelSpec:
    """Returns a LLaMA: a decoder with rotary positions, RMS norms and gated MLPs, no biases.

    Source: Touvron et al. 2023, arXiv:2302.13971, §2.2, and arXiv:2307.09288, §2.2; initial values:
    `initializer_range` of the released config.json.
    """
    norm, mlp = RMSNormSpec(1e-5), sizes.mlp("silu", gated=True)
    block = TransformerBlockSpec(sizes.attention(rotary=rotary, window=window), mlp, norm=norm)
    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=sizes.embed,
        decoder=StackSpec(sizes.num_layers, (block,), causal=True, final_norm=norm),
        heads=(LMHeadSpec(tied=tied_logits),),
        start_id=start_id,
        init=NormalInitSpec(0.02),
    )


# Llama Team 2024, arXiv:2407.21783, §3.2, and, for 3.1's and 3.2's positions, the released
# params.json and model cards.
llama3 = functools.partial(llama, vocab=128256, start_id=128000, rotary=RotarySpec(500_000.0))
llama3_1 = functools.partial(llama3, rotary=RotarySpec(500_000.0, scaling=Llama3ScalingSpec(8.0)))
llama3_2 = functools.partial(
    llama3, tied_logits=True, rotary=RotarySpec(500_000.0, scaling=Llama3ScalingSpec(32.0))
)
_8B, _70B = Sizes(4096, 32, 32, 14336, 8), Sizes(8192, 80, 64, 28672, 8)
# Jiang et al. 2023, arXiv:2310.06825, §2; a token of v0.1 sees 4096 keys, its own among them.
mistral_7b = functools.partial(llama, _8B, family="mistral")

PRESETS: dict[str, ModelSpec] = {
    "llama2_7b": llama(Sizes(4096, 32, 32, 11008)),
    "llama2_13b": llama(Sizes(5120, 40, 40, 13824)),
    "llama2_70b": llama(_70B),
    "llama3_8b": llama3(_8B),
    "llama3_70b": llama3(_70B),
    "llama3_1_8b": llama3_1(_8B),
    "llama3_1_70b": llama3_1(_70B),
    "llama3_1_405b": llama3_1(Sizes(16384, 126, 128, 53248, 8)),
    "llama3_2_1b": llama3_2(Sizes(2048, 16, 32, 8192, 8)),
    "llama3_2_3b": llama3_2(Sizes(3072, 28, 24, 8192, 8)),
    "mistral_7b_v0_1": mistral_7b(window=4095),
    "mistral_7b_v0_2": mistral_7b(rotary=RotarySpec(1_000_000.0)),
    "mistral_7b_v0_3": mistral_7b(rotary=RotarySpec(1_000_000.0), vocab=32768),
    "llama_nano": llama(Sizes(128, 2, 4, 320, 2), vocab=4096, start_id=0),
}
