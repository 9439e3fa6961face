"""T5 v1.0 and v1.1, FLAN-T5, mT5, UMT5, ByT5 and Switch Transformers."""

import functools

from t5lite.layers import FanInInitSpec, LMHeadSpec, MoeSpec, RelativeBiasSpec
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import BASE, LARGE, Sizes
from t5lite.models.spec import ModelSpec, StackSpec


def t5(
    sizes: Sizes,
    *,
    gated: bool,
    tied_logits: bool,
    dropout_rate: float,
    num_decoder_layers: int | None = None,
    vocab: int = 32128,
    per_layer_bias: bool = False,
    family: str = "t5",
) -> ModelSpec:
    """Returns a T5: encoder and decoder, relative bias, RMS norm, unscaled attention logits.

    Source: Raffel et al. 2020, arXiv:1910.10683, §2.1 and §3.7.
    """
    attention = sizes.attention(logits_scale=1.0)
    block = TransformerBlockSpec(
        attention, sizes.mlp("gelu_tanh" if gated else "relu", gated=gated)
    )
    crossed = block.replace(cross_attention=attention)
    stack = functools.partial(
        StackSpec,
        position_bias=RelativeBiasSpec(per_layer=per_layer_bias),
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=sizes.embed,
        encoder=stack(sizes.num_layers, (block,), causal=False),
        decoder=stack(num_decoder_layers or sizes.num_layers, (crossed,), causal=True),
        heads=(LMHeadSpec(tied=True, logits_scale=None) if tied_logits else LMHeadSpec(),),
    )


def switch(
    sizes: Sizes,
    *,
    num_experts: int,
    every: int = 2,
    tied_logits: bool = True,
    gated: bool = False,
) -> ModelSpec:
    """Returns a Switch Transformer: a T5 whose last of `every` layers is a mixture of experts.

    Source: Fedus et al. 2021, arXiv:2101.03961, §2 and table 9, initial values §2.4; sizes:
    flaxformer's `moe/models/switch_classic_*.gin`; slots per row, coefficients: transformers.
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


# T5 v1.0, arXiv:1910.10683, §3.7: ReLU, logits from the token embedding, dropout 0.1.
t5_1_0 = functools.partial(t5, gated=False, tied_logits=True, dropout_rate=0.1)
# T5 v1.1 (google-research/text-to-text-transfer-transformer, released_checkpoints.md): gated GELU,
# untied logits, no dropout in pre-training (fine-tune with 0.1). The LM-adapted checkpoints
# (Lester et al. 2021, arXiv:2104.08691, §3.2) were trained on and are the same models.
t5_1_1 = functools.partial(t5, gated=True, tied_logits=False, dropout_rate=0.0)
# Chung et al. 2022, arXiv:2210.11416, §2: T5 v1.1, trained on instructions, with dropout.
flan_t5 = functools.partial(t5_1_1, dropout_rate=0.1)
# Xue et al. 2020, arXiv:2010.11934, §3.2: T5 v1.1 with a vocabulary for 101 languages.
mt5 = functools.partial(t5_1_1, vocab=250112, family="mt5")
# Chung et al. 2023, arXiv:2304.09151: mT5 of another vocabulary; trained by T5X's scalable
# T5, in which each layer has a table of biases.
umt5 = functools.partial(t5_1_1, vocab=256384, per_layer_bias=True, family="umt5")
# Xue et al. 2021, arXiv:2105.13626, §3.1 and table 1: bytes, and three quarters of the layers in
# the encoder.
byt5 = functools.partial(t5_1_1, vocab=384)

_SIZES = {
    "small": Sizes(512, 8, 6, 1024, head_dim=64),
    "base": Sizes(768, 12, 12, 2048),
    "large": Sizes(1024, 24, 16, 2816),
    "xl": Sizes(2048, 24, 32, 5120),
    "xxl": Sizes(4096, 24, 64, 10240),
}

PRESETS: dict[str, ModelSpec] = {
    "t5_small": t5_1_0(Sizes(512, 6, 8)),
    "t5_base": t5_1_0(BASE),
    "t5_large": t5_1_0(LARGE),
    "t5_3b": t5_1_0(Sizes(1024, 24, 32, 16384, head_dim=128)),
    "t5_11b": t5_1_0(Sizes(1024, 24, 128, 65536, head_dim=128)),
    **{f"t5_1_1_{name}": t5_1_1(sizes) for name, sizes in _SIZES.items()},
    **{f"flan_t5_{name}": flan_t5(sizes) for name, sizes in _SIZES.items()},
    **{f"mt5_{name}": mt5(sizes) for name, sizes in _SIZES.items()},
    **{f"umt5_{name}": umt5(sizes) for name, sizes in _SIZES.items() if name != "large"},
    "byt5_small": byt5(Sizes(1472, 12, 6, 3584, head_dim=64), num_decoder_layers=4),
    "byt5_base": byt5(Sizes(1536, 18, 12, 3968, head_dim=64), num_decoder_layers=6),
    "byt5_large": byt5(Sizes(1536, 36, 16, 3840, head_dim=64), num_decoder_layers=12),
    "byt5_xl": byt5(Sizes(2560, 36, 32, 6720, head_dim=64), num_decoder_layers=12),
    "byt5_xxl": byt5(Sizes(4672, 36, 64, 12352, head_dim=64), num_decoder_layers=12),
    "t5_nano": t5_1_0(Sizes(128, 2, 4), vocab=4096),
    "t5_1_1_nano": t5_1_1(Sizes(128, 2, 4, 320), vocab=4096),
    # Learns in 90 s on two CPU cores to read what stands beside a gap: see benchmarks/README.md.
    "t5_1_1_pico": t5_1_1(Sizes(64, 1, 4, 192), vocab=4096).replace(
        init=FanInInitSpec(position_bias_window=3)
    ),
    **{f"switch_base_{n}": switch(BASE, num_experts=n) for n in (8, 16, 32, 64, 128, 256)},
    "switch_large_128": switch(LARGE, num_experts=128),
    "switch_xxl_128": switch(
        Sizes(4096, 24, 64, 10240), num_experts=128, gated=True, tied_logits=False
    ),
    "switch_c_2048": switch(
        Sizes(2080, 15, 30, 6144, head_dim=64), num_experts=2048, every=1, tied_logits=False
    ),
}
