"""ELECTRA: discriminators, and the generators that were trained beside them."""

from typing import Any

from t5lite.layers import HeadSpec, MaskedLMHeadSpec, ReplacedTokensHeadSpec
from t5lite.models.presets.bert import bert
from t5lite.models.spec import ModelSpec


def electra(*, head: HeadSpec, embedding_size: int | None = None, **sizes: Any) -> ModelSpec:
    """Returns an ELECTRA: a BERT, its token embedding projected where it has another width.

    Args:
      head: `ReplacedTokensHeadSpec` of a discriminator, `MaskedLMHeadSpec` of a generator.
      embedding_size: of the token embedding; None for `embed`.
      sizes: arguments of `bert`.

    Source: Clark et al. 2020, arXiv:2003.10555, §2, §3.2 and appendix A, and the authors' code.
    """
    return bert(**sizes).replace(family="electra", embedding_size=embedding_size, heads=(head,))


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
