"""GPT-2 and DistilGPT2, and the sizes of GPT-3 and Megatron-Turing NLG."""

import functools

from t5lite.layers import (
    AttentionSpec,
    InitSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    MlpSpec,
    NormalInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def gpt2(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    max_length: int = 1024,
    vocab: int = 50257,
    dropout_rate: float = 0.1,
    start_id: int = 50256,
    init: InitSpec = NormalInitSpec(0.02, scaled_residuals=True),
) -> ModelSpec:
    """Returns a GPT-2: a decoder with learned positions and logits from the token embedding.

    Its texts begin with the token that ends them, `<|endoftext|>`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3.
      Initial values: also the authors' `model.py`; positions as in transformers (0.01 there).
    """
    norm = LayerNormSpec(1e-5)
    block = TransformerBlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(4 * embed, "gelu_tanh", use_bias=True),
        norm=norm,
    )
    decoder = StackSpec(
        num_layers,
        (block,),
        causal=True,
        position_embedding=LearnedPositionsSpec(max_length),
        final_norm=norm,
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="gpt2",
        vocab=vocab,
        embed=embed,
        decoder=decoder,
        heads=(LMHeadSpec(tied=True),),
        start_id=start_id,
        init=init,
    )


# Brown et al. 2020, arXiv:2005.14165, table 2.1. Every second layer of theirs sees near tokens
# only; how near is not said, and here all see all. The table's 24 heads of 128 in 1.3B and width
# 5140 in 13B do not give the parameters of its table D.1; 16 heads and 5120 do.
gpt3 = functools.partial(gpt2, max_length=2048, dropout_rate=0.0)  # initial values too: §2.1

PRESETS: dict[str, ModelSpec] = {
    "gpt2": gpt2(embed=768, num_layers=12, num_heads=12),
    "gpt2_medium": gpt2(embed=1024, num_layers=24, num_heads=16),
    "gpt2_large": gpt2(embed=1280, num_layers=36, num_heads=20),
    "gpt2_xl": gpt2(embed=1600, num_layers=48, num_heads=25),
    # Every second layer of the smallest: Sanh et al. 2019, arXiv:1910.01108, §3, of BERT.
    "distilgpt2": gpt2(embed=768, num_layers=6, num_heads=12),
    "gpt3_125m": gpt3(embed=768, num_layers=12, num_heads=12),
    "gpt3_350m": gpt3(embed=1024, num_layers=24, num_heads=16),
    "gpt3_760m": gpt3(embed=1536, num_layers=24, num_heads=16),
    "gpt3_1_3b": gpt3(embed=2048, num_layers=24, num_heads=16),
    "gpt3_2_7b": gpt3(embed=2560, num_layers=32, num_heads=32),
    "gpt3_6_7b": gpt3(embed=4096, num_layers=32, num_heads=32),
    "gpt3_13b": gpt3(embed=5120, num_layers=40, num_heads=40),
    "gpt3_175b": gpt3(embed=12288, num_layers=96, num_heads=96),
    # Smith et al. 2022, arXiv:2201.11990, §3.1; with Megatron's vocabulary, rounded up, and its
    # scaled residuals.
    "mt_nlg_530b": gpt3(
        embed=20480,
        num_layers=105,
        num_heads=128,
        vocab=51200,
        init=NormalInitSpec(4e-3, scaled_residuals=True),
    ),
    "gpt_nano": gpt2(
        embed=128,
        num_layers=2,
        num_heads=4,
        max_length=256,
        vocab=4096,
        dropout_rate=0.0,
        start_id=0,
    ),
}
