"""ALBERT."""

import functools

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
)
from t5lite.models.block import BlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def albert(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    embedding_size: int = 128,
    max_length: int = 512,
    vocab: int = 30000,
    dropout_rate: float,
) -> ModelSpec:
    """Returns an ALBERT: a BERT whose layers are one, and whose token embedding is narrow.

    Source: Lan et al. 2019, arXiv:1909.11942, §3.1 and table 1, and the authors' `modeling.py`,
      whose GELU is the tanh-approximated one.
    """
    norm = LayerNormSpec(1e-12)
    block = BlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(hidden, "gelu_tanh", use_bias=True),
        norm=norm,
        norm_placement="after",
    )
    encoder = StackSpec(
        num_layers,
        (block,),
        causal=False,
        shared_layers=True,
        position_embedding=LearnedPositionsSpec(max_length),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="albert",
        vocab=vocab,
        embed=embed,
        embedding_size=embedding_size,
        encoder=encoder,
        heads=(MaskedLMHeadSpec("gelu_tanh", norm),),
        num_token_types=2,
        embedding_stddev=0.02,
    )


_base = functools.partial(albert, embed=768, num_layers=12, num_heads=12, hidden=3072)
_large = functools.partial(albert, embed=1024, num_layers=24, num_heads=16, hidden=4096)
_xlarge = functools.partial(albert, embed=2048, num_layers=24, num_heads=16, hidden=8192)
_xxlarge = functools.partial(albert, embed=4096, num_layers=12, num_heads=64, hidden=16384)

# v2 (the authors' README) was trained longer, on more data, and without dropout, as v1's xxlarge
# had been.
PRESETS: dict[str, ModelSpec] = {
    "albert_base_v1": _base(dropout_rate=0.1),
    "albert_large_v1": _large(dropout_rate=0.1),
    "albert_xlarge_v1": _xlarge(dropout_rate=0.1),
    "albert_xxlarge_v1": _xxlarge(dropout_rate=0.0),
    "albert_base_v2": _base(dropout_rate=0.0),
    "albert_large_v2": _large(dropout_rate=0.0),
    "albert_xlarge_v2": _xlarge(dropout_rate=0.0),
    "albert_xxlarge_v2": _xxlarge(dropout_rate=0.0),
}
