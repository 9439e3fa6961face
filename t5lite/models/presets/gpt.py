"""GPT-2, DistilGPT2, GPT-3 and Megatron-Turing NLG; GPT-NeoX-20B, Pythia and PaLM."""

import functools

from t5lite.layers import (
    FanInInitSpec,
    InitSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    NormalInitSpec,
    RotarySpec,
    SmallInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import BASE, LARGE, Sizes
from t5lite.models.spec import ModelSpec, StackSpec

_NORM = LayerNormSpec(1e-5)


def gpt2(
    sizes: Sizes,
    *,
    max_length: int = 1024,
    vocab: int = 50257,
    dropout_rate: float = 0.1,
    start_id: int = 50256,
    init: InitSpec = NormalInitSpec(0.02, scaled_residuals=True),
) -> ModelSpec:
    """Returns a GPT-2: a decoder with learned positions, tied logits and start token
    `<|endoftext|>`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3.
    Initial values: also the authors' `model.py`, but positions as in transformers (theirs: 0.01).
    """
    mlp = sizes.mlp("gelu_tanh", use_bias=True)
    decoder = StackSpec(
        sizes.num_layers,
        (TransformerBlockSpec(sizes.attention(use_bias=True), mlp, norm=_NORM),),
        causal=True,
        position_embedding=LearnedPositionsSpec(max_length),
        final_norm=_NORM,
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="gpt2",
        vocab=vocab,
        embed=sizes.embed,
        decoder=decoder,
        heads=(LMHeadSpec(tied=True),),
        start_id=start_id,
        init=init,
    )


# Brown et al. 2020, arXiv:2005.14165, table 2.1. Every second layer of theirs sees near tokens
# only; how near is not said, and here all see all. The table's 24 heads of 128 in 1.3B and width
# 5140 in 13B do not give the parameters of its table D.1; 16 heads and 5120 do.
gpt3 = functools.partial(gpt2, max_length=2048, dropout_rate=0.0)  # initial values too: §2.1


def gpt_neox(sizes: Sizes, *, vocab: int = 50304, activation: str = "gelu") -> ModelSpec:
    """Returns a GPT-NeoX: attention and MLP in parallel, a quarter of each head rotary, start token
    0, which is `<|endoftext|>`.

    Source: Black et al. 2022, arXiv:2204.06745, §2.1; Pythia's initial values: its configs.
    """
    attention = sizes.attention(use_bias=True, rotary=RotarySpec(fraction=0.25))
    mlp = sizes.mlp(activation, use_bias=True)
    block = TransformerBlockSpec(attention, mlp, norm=_NORM, parallel=True)
    return ModelSpec(
        family="gpt_neox",
        vocab=vocab,
        embed=sizes.embed,
        decoder=StackSpec(sizes.num_layers, (block,), causal=True, final_norm=_NORM),
        init=SmallInitSpec(),
    )


def palm(sizes: Sizes) -> ModelSpec:
    """Returns a PaLM: attention and gated MLP in parallel, one key and value head, no biases.

    Each of the two has its own norm, where the paper writes one formula for both. Its weights were
    not released.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, §2; initial values, §5.
    """
    norm = LayerNormSpec(1e-5, use_bias=False)
    attention, mlp = sizes.attention(rotary=RotarySpec()), sizes.mlp("silu", gated=True)
    block = TransformerBlockSpec(attention, mlp, norm=norm, parallel=True)
    return ModelSpec(
        family="palm",
        vocab=256_000,
        embed=sizes.embed,
        decoder=StackSpec(sizes.num_layers, (block,), causal=True, final_norm=norm),
        heads=(LMHeadSpec(tied=True, logits_scale=None),),
        init=FanInInitSpec(distribution="normal"),
    )


PRESETS: dict[str, ModelSpec] = {
    "gpt2": gpt2(BASE),
    "gpt2_medium": gpt2(LARGE),
    "gpt2_large": gpt2(Sizes(1280, 36, 20)),
    "gpt2_xl": gpt2(Sizes(1600, 48, 25)),
    # Every second layer of the smallest: Sanh et al. 2019, arXiv:1910.01108, §3, of BERT.
    "distilgpt2": gpt2(Sizes(768, 6, 12)),
    "gpt3_125m": gpt3(BASE),
    "gpt3_350m": gpt3(LARGE),
    "gpt3_760m": gpt3(Sizes(1536, 24, 16)),
    "gpt3_1_3b": gpt3(Sizes(2048, 24, 16)),
    "gpt3_2_7b": gpt3(Sizes(2560, 32, 32)),
    "gpt3_6_7b": gpt3(Sizes(4096, 32, 32)),
    "gpt3_13b": gpt3(Sizes(5120, 40, 40)),
    "gpt3_175b": gpt3(Sizes(12288, 96, 96)),
    # Smith et al. 2022, arXiv:2201.11990, §3.1; with Megatron's vocabulary, rounded up, and its
    # scaled residuals.
    "mt_nlg_530b": gpt3(
        Sizes(20480, 105, 128), vocab=51200, init=NormalInitSpec(4e-3, scaled_residuals=True)
    ),
    "gpt_nano": gpt2(Sizes(128, 2, 4), max_length=256, vocab=4096, dropout_rate=0.0, start_id=0),
    # Pythia: Biderman et al. 2023, arXiv:2304.01373, §2.1; the two smallest came later. The tables
    # are 50,254 tokens rounded up for the number of devices each was trained on.
    "gpt_neox_20b": gpt_neox(Sizes(6144, 44, 64), vocab=50432, activation="gelu_tanh"),
    "pythia_14m": gpt_neox(Sizes(128, 6, 4)),
    "pythia_31m": gpt_neox(Sizes(256, 6, 8)),
    "pythia_70m": gpt_neox(Sizes(512, 6, 8)),
    "pythia_160m": gpt_neox(BASE),
    "pythia_410m": gpt_neox(LARGE),
    "pythia_1b": gpt_neox(Sizes(2048, 16, 8)),
    "pythia_1_4b": gpt_neox(Sizes(2048, 24, 16)),
    "pythia_2_8b": gpt_neox(Sizes(2560, 32, 32)),
    "pythia_6_9b": gpt_neox(Sizes(4096, 32, 32), vocab=50432),
    "pythia_12b": gpt_neox(Sizes(5120, 36, 40), vocab=50688),
    # PaLM's table 1.
    "palm_8b": palm(Sizes(4096, 32, 16, None, 1, 256)),
    "palm_62b": palm(Sizes(8192, 64, 32, None, 1, 256)),
    "palm_540b": palm(Sizes(18432, 118, 48, None, 1, 256)),
}
