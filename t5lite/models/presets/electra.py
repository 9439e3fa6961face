"""ELECTRA: discriminators, and the generators that were trained beside them."""

from t5lite.layers import (
    AttentionSpec,
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    ReplacedTokensHeadSpec,
)
from t5lite.models.block import BlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def electra(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    head: HeadSpec,
    embedding_size: int | None = None,
    max_length: int = 512,
    vocab: int = 30522,
    dropout_rate: float = 0.1,
) -> ModelSpec:
    """Returns an ELECTRA: a BERT, its token embedding projected where it has another width.

    Source: Clark et al. 2020, arXiv:2003.10555, §2, §3.2 and appendix A, and the authors' code.
    """
    norm = LayerNormSpec(1e-12)
    block = BlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(hidden, "gelu", use_bias=True),
        norm=norm,
        norm_placement="after",
    )
    encoder = StackSpec(
        num_layers,
        (block,),
        causal=False,
        position_embedding=LearnedPositionsSpec(max_length),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="electra",
        vocab=vocab,
        embed=embed,
        embedding_size=embedding_size,
        encoder=encoder,
        heads=(head,),
        num_token_types=2,
        embedding_stddev=0.02,
    )


_REPLACED, _MASKED = ReplacedTokensHeadSpec(), MaskedLMHeadSpec()

# A generator shares the discriminator's embedding. The released small one is as large as its
# discriminator (small++, the authors' README), the others are a third and a quarter as wide.
PRESETS: dict[str, ModelSpec] = {
    "electra_small_discriminator": electra(
        embed=256, num_layers=12, num_heads=4, hidden=1024, head=_REPLACED, embedding_size=128
    ),
    "electra_base_discriminator": electra(
        embed=768, num_layers=12, num_heads=12, hidden=3072, head=_REPLACED
    ),
    "electra_large_discriminator": electra(
        embed=1024, num_layers=24, num_heads=16, hidden=4096, head=_REPLACED
    ),
    "electra_small_generator": electra(
        embed=256, num_layers=12, num_heads=4, hidden=1024, head=_MASKED, embedding_size=128
    ),
    "electra_base_generator": electra(
        embed=256, num_layers=12, num_heads=4, hidden=1024, head=_MASKED, embedding_size=768
    ),
    "electra_large_generator": electra(
        embed=256, num_layers=24, num_heads=4, hidden=1024, head=_MASKED, embedding_size=1024
    ),
}
