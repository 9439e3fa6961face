"""T5 v1.0 and v1.1, FLAN-T5, mT5, UMT5 and ByT5."""

import functools
from typing import Any

from t5lite.layers import (
    AttentionSpec,
    FanInInitSpec,
    LMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def t5(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    mlp: MlpSpec,
    tied_logits: bool,
    head_dim: int = 64,
    num_decoder_layers: int | None = None,
    vocab: int = 32128,
    dropout_rate: float,
    per_layer_bias: bool = False,
    family: str = "t5",
) -> ModelSpec:
    """Returns a T5: encoder and decoder, relative bias, RMS norm, unscaled attention logits.

    Source: Raffel et al. 2020, arXiv:1910.10683, §2.1 and §3.7.
    """
    attention = AttentionSpec(num_heads, head_dim, logits_scale=1.0)
    stack = functools.partial(
        StackSpec,
        position_bias=RelativeBiasSpec(per_layer=per_layer_bias),
        dropout_rate=dropout_rate,
    )
    crossed = TransformerBlockSpec(attention, mlp, cross_attention=attention)
    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=embed,
        encoder=stack(num_layers, (TransformerBlockSpec(attention, mlp),), causal=False),
        decoder=stack(num_decoder_layers or num_layers, (crossed,), causal=True),
        heads=(LMHeadSpec(tied=True, logits_scale=None) if tied_logits else LMHeadSpec(),),
    )


# T5 v1.0, arXiv:1910.10683, §3.7: ReLU, logits from the token embedding, dropout 0.1.
t5_1_0 = functools.partial(t5, tied_logits=True, dropout_rate=0.1)
# T5 v1.1 (google-research/text-to-text-transfer-transformer, released_checkpoints.md): gated GELU,
# a table of its own for the logits, no dropout in pre-training (fine-tune with 0.1). The LM-adapted
# checkpoints (Lester et al. 2021, arXiv:2104.08691, §3.2) were trained on and are the same models.
t5_1_1 = functools.partial(t5, tied_logits=False, dropout_rate=0.0)
# Chung et al. 2022, arXiv:2210.11416, §2: T5 v1.1, trained on instructions, with dropout.
flan_t5 = functools.partial(t5, tied_logits=False, dropout_rate=0.1)
# Xue et al. 2020, arXiv:2010.11934, §3.2: T5 v1.1 with a vocabulary for 101 languages.
mt5 = functools.partial(t5_1_1, vocab=250112, family="mt5")
# Chung et al. 2023, arXiv:2304.09151: mT5 of another vocabulary; trained by T5X's scalable
# T5, in which each layer has a table of biases.
umt5 = functools.partial(t5_1_1, vocab=256384, per_layer_bias=True, family="umt5")
# Xue et al. 2021, arXiv:2105.13626, §3.1 and table 1: bytes, and three quarters of the layers in
# the encoder.
byt5 = functools.partial(t5_1_1, vocab=384)


def _relu(hidden: int) -> MlpSpec:
    return MlpSpec(hidden, "relu")


def _gated(hidden: int) -> MlpSpec:
    return MlpSpec(hidden, "gelu_tanh", gated=True)


_1_1_SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed": 512, "num_layers": 8, "num_heads": 6, "mlp": _gated(1024)},
    "base": {"embed": 768, "num_layers": 12, "num_heads": 12, "mlp": _gated(2048)},
    "large": {"embed": 1024, "num_layers": 24, "num_heads": 16, "mlp": _gated(2816)},
    "xl": {"embed": 2048, "num_layers": 24, "num_heads": 32, "mlp": _gated(5120)},
    "xxl": {"embed": 4096, "num_layers": 24, "num_heads": 64, "mlp": _gated(10240)},
}


PRESETS: dict[str, ModelSpec] = {
    "t5_small": t5_1_0(embed=512, num_layers=6, num_heads=8, mlp=_relu(2048)),
    "t5_base": t5_1_0(embed=768, num_layers=12, num_heads=12, mlp=_relu(3072)),
    "t5_large": t5_1_0(embed=1024, num_layers=24, num_heads=16, mlp=_relu(4096)),
    "t5_3b": t5_1_0(embed=1024, num_layers=24, num_heads=32, head_dim=128, mlp=_relu(16384)),
    "t5_11b": t5_1_0(embed=1024, num_layers=24, num_heads=128, head_dim=128, mlp=_relu(65536)),
    **{f"t5_1_1_{size}": t5_1_1(**sizes) for size, sizes in _1_1_SIZES.items()},
    **{f"flan_t5_{size}": flan_t5(**sizes) for size, sizes in _1_1_SIZES.items()},
    **{f"mt5_{size}": mt5(**sizes) for size, sizes in _1_1_SIZES.items()},
    **{f"umt5_{size}": umt5(**_1_1_SIZES[size]) for size in ("small", "base", "xl", "xxl")},
    "byt5_small": byt5(
        embed=1472, num_layers=12, num_decoder_layers=4, num_heads=6, mlp=_gated(3584)
    ),
    "byt5_base": byt5(
        embed=1536, num_layers=18, num_decoder_layers=6, num_heads=12, mlp=_gated(3968)
    ),
    "byt5_large": byt5(
        embed=1536, num_layers=36, num_decoder_layers=12, num_heads=16, mlp=_gated(3840)
    ),
    "byt5_xl": byt5(
        embed=2560, num_layers=36, num_decoder_layers=12, num_heads=32, mlp=_gated(6720)
    ),
    "byt5_xxl": byt5(
        embed=4672, num_layers=36, num_decoder_layers=12, num_heads=64, mlp=_gated(12352)
    ),
    "t5_nano": t5_1_0(
        embed=128, num_layers=2, num_heads=4, head_dim=32, mlp=_relu(512), vocab=4096
    ),
    "t5_1_1_nano": t5_1_1(
        embed=128, num_layers=2, num_heads=4, head_dim=32, mlp=_gated(320), vocab=4096
    ),
    # Learns in 90 s on two CPU cores to read what stands beside a gap: see benchmarks/README.md.
    "t5_1_1_pico": t5_1_1(
        embed=64, num_layers=1, num_heads=4, head_dim=16, mlp=_gated(192), vocab=4096
    ).replace(init=FanInInitSpec(position_bias_window=3)),
}
