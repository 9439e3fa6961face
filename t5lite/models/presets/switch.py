"""Switch Transformers: T5 with a mixture of experts in place of some MLPs."""

from t5lite.layers import FanInInitSpec, MoeSpec
from t5lite.models.presets.sizes import BASE, LARGE, Sizes
from t5lite.models.presets.t5 import t5
from t5lite.models.spec import ModelSpec, StackSpec


def switch(
    sizes: Sizes,
    *,
    num_experts: int,
    every: int = 2,
    tied_logits: bool = True,
    gated: bool = False,
) -> ModelSpec:
    """Returns a Switch Transformer: experts in the last of `every` layers, the others dense.

    Source: Fedus et al. 2021, arXiv:2101.03961, §2 and table 9, initial values §2.4; sizes as
      released (flaxformer's `moe/models/switch_classic_*.gin`), slots per row and coefficients as
      in transformers.
    """
    spec = t5(sizes, gated=gated, tied_logits=tied_logits, dropout_rate=0.1)

    def sparse(stack: StackSpec | None) -> StackSpec:
        assert stack is not None
        (dense,) = stack.blocks
        experts = MoeSpec(
            dense.mlp,
            num_experts,
            capacity=64,
            balance_coefficient=0.001,
            router_z_coefficient=0.001,
            router_jitter_rate=0.01,
        )
        return stack.replace(blocks=(dense,) * (every - 1) + (dense.replace(mlp=experts),))

    return spec.replace(
        family="switch_transformers",
        encoder=sparse(spec.encoder),
        decoder=sparse(spec.decoder),
        init=FanInInitSpec(scale=0.1),
    )


PRESETS: dict[str, ModelSpec] = {
    **{f"switch_base_{n}": switch(BASE, num_experts=n) for n in (8, 16, 32, 64, 128, 256)},
    "switch_large_128": switch(LARGE, num_experts=128),
    "switch_xxl_128": switch(
        Sizes(4096, 24, 64, 10240), num_experts=128, gated=True, tied_logits=False
    ),
    "switch_c_2048": switch(
        Sizes(2080, 15, 30, 6144, head_dim=64), num_experts=2048, every=1, tied_logits=False
    ),
}
