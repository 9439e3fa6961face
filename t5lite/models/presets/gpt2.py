"""GPT-2 and DistilGPT2."""

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    MlpSpec,
)
from t5lite.models.block import BlockSpec
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
) -> ModelSpec:
    """Returns a GPT-2: a decoder with learned positions and logits from the token embedding.

    Its texts begin with the token that ends them, `<|endoftext|>`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3.
    """
    norm = LayerNormSpec(1e-5)
    block = BlockSpec(
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
        embedding_stddev=0.02,
    )


PRESETS: dict[str, ModelSpec] = {
    "gpt2": gpt2(embed=768, num_layers=12, num_heads=12),
    "gpt2_medium": gpt2(embed=1024, num_layers=24, num_heads=16),
    "gpt2_large": gpt2(embed=1280, num_layers=36, num_heads=20),
    "gpt2_xl": gpt2(embed=1600, num_layers=48, num_heads=25),
    # Every second layer of the smallest: Sanh et al. 2019, arXiv:1910.01108, §3, of BERT.
    "distilgpt2": gpt2(embed=768, num_layers=6, num_heads=12),
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
