"""Switch Transformers: T5 with a mixture of experts in place of some MLPs."""

import functools
from typing import Any

from t5lite.layers import (
    AttentionSpec,
    FanInInitSpec,
    LMHeadSpec,
    MlpSpec,
    MoeSpec,
    RelativeBiasSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def switch(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    mlp: MlpSpec,
    num_experts: int,
    every: int = 2,
    tied_logits: bool = True,
    head_dim: int = 64,
    vocab: int = 32128,
    capacity: int = 64,
    dropout_rate: float = 0.1,
) -> ModelSpec:
    """Returns a Switch Transformer: experts in the last of `every` layers, the others dense.

    Source: Fedus et al. 2021, arXiv:2101.03961, §2 and table 9, initial values §2.4; sizes as
      released (flaxformer's `moe/models/switch_classic_*.gin`), slots per row and coefficients as
      in transformers.
    """
    attention = AttentionSpec(num_heads, head_dim, logits_scale=1.0)
    experts = MoeSpec(
        mlp,
        num_experts,
        capacity=capacity,
        balance_coefficient=0.001,
        router_z_coefficient=0.001,
        router_jitter_rate=0.01,
    )
    mlps = (mlp,) * (every - 1) + (experts,)

    def stack(**kind: Any) -> StackSpec:
        return StackSpec(
            num_layers,
            tuple(
                TransformerBlockSpec(attention, each, cross_attention=kind["cross"])
                for each in mlps
            ),
            causal=kind["causal"],
            position_bias=RelativeBiasSpec(),
            dropout_rate=dropout_rate,
        )

    return ModelSpec(
        family="switch_transformers",
        vocab=vocab,
        embed=embed,
        encoder=stack(causal=False, cross=None),
        decoder=stack(causal=True, cross=attention),
        heads=(LMHeadSpec(tied=True, logits_scale=None) if tied_logits else LMHeadSpec(),),
        init=FanInInitSpec(scale=0.1),
    )


_base = functools.partial(switch, embed=768, num_layers=12, num_heads=12, mlp=MlpSpec(3072, "relu"))

PRESETS: dict[str, ModelSpec] = {
    "switch_base_8": _base(num_experts=8),
    "switch_base_16": _base(num_experts=16),
    "switch_base_32": _base(num_experts=32),
    "switch_base_64": _base(num_experts=64),
    "switch_base_128": _base(num_experts=128),
    "switch_base_256": _base(num_experts=256),
    "switch_large_128": switch(
        embed=1024, num_layers=24, num_heads=16, mlp=MlpSpec(4096, "relu"), num_experts=128
    ),
    "switch_xxl_128": switch(
        embed=4096,
        num_layers=24,
        num_heads=64,
        mlp=MlpSpec(10240, "gelu_tanh", gated=True),
        num_experts=128,
        tied_logits=False,
    ),
    "switch_c_2048": switch(
        embed=2080,
        num_layers=15,
        num_heads=30,
        mlp=MlpSpec(6144, "relu"),
        num_experts=2048,
        every=1,
        tied_logits=False,
    ),
}
