"""GPT-NeoX-20B and Pythia."""

from t5lite.layers import AttentionSpec, LayerNormSpec, MlpSpec, RotarySpec, SmallInitSpec
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def gpt_neox(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    vocab: int = 50304,
    activation: str = "gelu",
) -> ModelSpec:
    """Returns a GPT-NeoX: attention and MLP side by side, and a quarter of each head rotary.

    Its texts begin with the token that ends them, `<|endoftext|>`, which is 0.

    Source: Black et al. 2022, arXiv:2204.06745, §2.1; initial values of Pythia: the authors'
      configs.
    """
    norm = LayerNormSpec(1e-5)
    attention = AttentionSpec(
        num_heads, embed // num_heads, use_bias=True, rotary=RotarySpec(fraction=0.25)
    )
    mlp = MlpSpec(4 * embed, activation, use_bias=True)
    block = TransformerBlockSpec(attention, mlp, norm=norm, parallel=True)
    return ModelSpec(
        family="gpt_neox",
        vocab=vocab,
        embed=embed,
        decoder=StackSpec(num_layers, (block,), causal=True, final_norm=norm),
        init=SmallInitSpec(),
    )


# Pythia: Biderman et al. 2023, arXiv:2304.01373, §2.1; the two smallest came later. The tables are
# 50,254 tokens rounded up for the number of devices each was trained on.
PRESETS: dict[str, ModelSpec] = {
    "gpt_neox_20b": gpt_neox(
        embed=6144, num_layers=44, num_heads=64, vocab=50432, activation="gelu_tanh"
    ),
    "pythia_14m": gpt_neox(embed=128, num_layers=6, num_heads=4),
    "pythia_31m": gpt_neox(embed=256, num_layers=6, num_heads=8),
    "pythia_70m": gpt_neox(embed=512, num_layers=6, num_heads=8),
    "pythia_160m": gpt_neox(embed=768, num_layers=12, num_heads=12),
    "pythia_410m": gpt_neox(embed=1024, num_layers=24, num_heads=16),
    "pythia_1b": gpt_neox(embed=2048, num_layers=16, num_heads=8),
    "pythia_1_4b": gpt_neox(embed=2048, num_layers=24, num_heads=16),
    "pythia_2_8b": gpt_neox(embed=2560, num_layers=32, num_heads=32),
    "pythia_6_9b": gpt_neox(embed=4096, num_layers=32, num_heads=32, vocab=50432),
    "pythia_12b": gpt_neox(embed=5120, num_layers=36, num_heads=40, vocab=50688),
}
