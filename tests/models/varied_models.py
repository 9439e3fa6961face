"""Tiny models that between them have every kind of layer that a spec can ask for."""

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LinearScalingSpec,
    Llama3ScalingSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    MoeSpec,
    PoolerHeadSpec,
    RelativeBiasSpec,
    ReplacedTokensHeadSpec,
    RMSNormSpec,
    RotarySpec,
    YarnScalingSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

VOCAB, EMBED = 50, 16

_OFFSET_NORM = RMSNormSpec(unit_offset=True)
_NEAR = AttentionSpec(
    4,
    8,
    num_kv_heads=2,
    rotary=RotarySpec(100.0),
    window=3,
    logits_softcap=2.0,
    query_key_norm=_OFFSET_NORM,
)
_EVERYWHERE = _NEAR.replace(
    rotary=RotarySpec(1000.0, fraction=0.5, scaling=YarnScalingSpec(4.0, original_length=64)),
    window=None,
    logits_scale=0.5,
)
_GATED = MlpSpec(24, "gelu_tanh", gated=True)


def _block(
    attention: AttentionSpec, mlp: MlpSpec | MoeSpec = _GATED, **changes
) -> TransformerBlockSpec:
    return TransformerBlockSpec(attention, mlp, **changes)


# One layer before the pattern, and two turns of it.
CAPPED_IN_WINDOWS = ModelSpec(
    family="gemma2",
    vocab=VOCAB,
    embed=EMBED,
    decoder=StackSpec(
        5,
        (
            _block(_NEAR, norm=_OFFSET_NORM, norm_placement="around"),
            _block(_EVERYWHERE, norm=_OFFSET_NORM, norm_placement="around"),
        ),
        causal=True,
        first_blocks=(
            _block(_EVERYWHERE, MlpSpec(20), norm=_OFFSET_NORM, norm_placement="around"),
        ),
        embedding_scale=4.0,
        final_norm=_OFFSET_NORM,
    ),
    heads=(LMHeadSpec(tied=True, softcap=3.0),),
)

_BIASED = AttentionSpec(
    4,
    8,
    use_bias=True,
    rotary=RotarySpec(fraction=0.25, scaling=Llama3ScalingSpec(2.0, 1.0, 4.0, 32)),
    query_key_norm=LayerNormSpec(),
)
_EXPERTS = MoeSpec(MlpSpec(12), num_experts=3)  # without a capacity, so that nothing is dropped
SIDE_BY_SIDE_AND_SHARED = ModelSpec(
    family="gpt_neox",
    vocab=VOCAB,
    embed=EMBED,
    decoder=StackSpec(
        4,
        tuple(
            _block(_BIASED, mlp, norm=LayerNormSpec(), parallel=True)
            for mlp in (MlpSpec(24, use_bias=True), _EXPERTS)
        ),
        causal=True,
        shared_layers=True,
        position_embedding=LearnedPositionsSpec(24, offset=2),
        final_norm=LayerNormSpec(),
    ),
    heads=(LMHeadSpec(use_bias=True),),
)

# One layer before the pattern, two turns of it, and one that remains.
_BARE_NORM = LayerNormSpec(use_bias=False)
_PLAIN = AttentionSpec(4, 8, rotary=RotarySpec(scaling=LinearScalingSpec(2.0)))
WINDOWS_AFTER_A_FIRST_LAYER = ModelSpec(
    family="modernbert",
    vocab=VOCAB,
    embed=EMBED,
    encoder=StackSpec(
        6,
        tuple(
            _block(attention, norm=_BARE_NORM) for attention in (_PLAIN.replace(window=2), _PLAIN)
        ),
        causal=False,
        first_blocks=(_block(_PLAIN, norm=_BARE_NORM, attention_norm=False),),
        embedding_norm=_BARE_NORM,
        final_norm=_BARE_NORM,
    ),
    heads=(MaskedLMHeadSpec("gelu", _BARE_NORM, use_bias=False),),
)

FACTORISED_AND_SHARED = ModelSpec(
    family="albert",
    vocab=VOCAB,
    embed=EMBED,
    embedding_size=8,
    encoder=StackSpec(
        3,
        (
            _block(
                AttentionSpec(4, 8, use_bias=True),
                MlpSpec(24, "gelu", use_bias=True),
                norm=LayerNormSpec(1e-12),
                norm_placement="after",
            ),
        ),
        causal=False,
        shared_layers=True,
        position_embedding=LearnedPositionsSpec(24, offset=1),
        embedding_norm=LayerNormSpec(1e-12),
        final_norm=None,
    ),
    heads=(MaskedLMHeadSpec(), ReplacedTokensHeadSpec(), PoolerHeadSpec()),
    num_token_types=2,
)

# The encoder is wider than the decoder.
UNEQUAL_WIDTHS_AND_EXPERTS = ModelSpec(
    family="t5gemma",
    vocab=VOCAB,
    embed=EMBED,
    shared_embedding=False,
    encoder=StackSpec(
        2,
        (_block(_EVERYWHERE, _EXPERTS, parallel=True),),
        causal=False,
        embed=24,
        embedding_scale=3.0,
    ),
    decoder=StackSpec(
        3,
        (
            _block(
                _NEAR,
                _EXPERTS,
                norm=_OFFSET_NORM,
                norm_placement="around",
                cross_attention=_NEAR.replace(rotary=None, window=None),
            ),
        ),
        causal=True,
    ),
    heads=(LMHeadSpec(tied=True, logits_scale=None, softcap=3.0),),
)

_BESIDE_A_BIAS = AttentionSpec(4, 6, logits_scale=1.0)
SHARED_ON_BOTH_SIDES = ModelSpec(
    family="t5",
    vocab=VOCAB,
    embed=EMBED,
    encoder=StackSpec(
        4,
        (_block(_BESIDE_A_BIAS.replace(window=4)), _block(_BESIDE_A_BIAS)),
        causal=False,
        shared_layers=True,
        position_bias=RelativeBiasSpec(8, 16),
    ),
    decoder=StackSpec(
        3,
        (_block(_BESIDE_A_BIAS, cross_attention=_BESIDE_A_BIAS, norm_placement="after"),),
        causal=True,
        shared_layers=True,
        position_bias=RelativeBiasSpec(8, 16, per_layer=True),
    ),
)

VARIED = {
    "capped_in_windows": CAPPED_IN_WINDOWS,
    "side_by_side_and_shared": SIDE_BY_SIDE_AND_SHARED,
    "windows_after_a_first_layer": WINDOWS_AFTER_A_FIRST_LAYER,
    "factorised_and_shared": FACTORISED_AND_SHARED,
    "unequal_widths_and_experts": UNEQUAL_WIDTHS_AND_EXPERTS,
    "shared_on_both_sides": SHARED_ON_BOTH_SIDES,
}
