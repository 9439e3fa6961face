"""BERT, and RoBERTa, XLM-RoBERTa and DistilBERT, which are BERTs trained otherwise."""

import functools
from typing import Any

from t5lite.layers import (
    AttentionSpec,
    FanInInitSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    TruncatedNormalInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def bert(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    max_length: int = 512,
    vocab: int = 30522,
    activation: str = "gelu",
    dropout_rate: float = 0.1,
) -> ModelSpec:
    """Returns a BERT: an encoder with norms after its sublayers, and the masked-LM head.

    Source: Devlin et al. 2018, arXiv:1810.04805, §3, and the authors' `modeling.py`.
    """
    norm = LayerNormSpec(1e-12)
    block = TransformerBlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(hidden, activation, use_bias=True),
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
        family="bert",
        vocab=vocab,
        embed=embed,
        encoder=encoder,
        heads=(MaskedLMHeadSpec(activation),),
        num_token_types=2,
        init=TruncatedNormalInitSpec(0.02),
    )


def roberta(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    vocab: int = 50265,
    family: str = "roberta",
) -> ModelSpec:
    """Returns a RoBERTa: a BERT of 512 positions, the table's first two rows unused, one type.

    Source: Liu et al. 2019, arXiv:1907.11692, §3 and §4.4; XLM-RoBERTa: Conneau et al. 2019,
    arXiv:1911.02116, §3 and appendix B. Padding has id 1 in both, hence the two rows. Initial
    values: fairseq's `init_bert_params`, a normal distribution that is not truncated.
    """
    spec = bert(embed=embed, num_layers=num_layers, num_heads=num_heads, hidden=hidden, vocab=vocab)
    assert spec.encoder is not None
    norm = LayerNormSpec(1e-5)
    encoder = spec.encoder.replace(
        blocks=tuple(block.replace(norm=norm) for block in spec.encoder.blocks),
        embedding_norm=norm,
        position_embedding=LearnedPositionsSpec(512, offset=2),
    )
    return spec.replace(
        family=family,
        encoder=encoder,
        heads=(MaskedLMHeadSpec(norm=norm),),
        num_token_types=1,
        init=NormalInitSpec(0.02),
    )


def distilbert(*, vocab: int = 30522) -> ModelSpec:
    """Returns a DistilBERT: six layers of a BERT base without token types.

    Source: Sanh et al. 2019, arXiv:1910.01108, §3; initial values: the authors' code.
    """
    spec = bert(embed=768, num_layers=6, num_heads=12, hidden=3072, vocab=vocab)
    return spec.replace(family="distilbert", num_token_types=None, init=NormalInitSpec(0.02))


_base: Any = functools.partial(dict, embed=768, num_layers=12, num_heads=12, hidden=3072)
_large: Any = functools.partial(dict, embed=1024, num_layers=24, num_heads=16, hidden=4096)

PRESETS: dict[str, ModelSpec] = {
    "bert_base": bert(**_base()),
    "bert_large": bert(**_large()),
    "bert_base_cased": bert(**_base(vocab=28996)),
    "bert_large_cased": bert(**_large(vocab=28996)),
    "bert_base_multilingual_cased": bert(**_base(vocab=119547)),
    "roberta_base": roberta(**_base()),
    "roberta_large": roberta(**_large()),
    "xlm_roberta_base": roberta(**_base(vocab=250002), family="xlm-roberta"),
    "xlm_roberta_large": roberta(**_large(vocab=250002), family="xlm-roberta"),
    "distilbert_base": distilbert(),
    "distilbert_base_cased": distilbert(vocab=28996),
    "distilbert_base_multilingual_cased": distilbert(vocab=119547),
    # Drawn by fan-in: BERT's 0.02 is for widths of 768 and more. At this one, the 500 steps of
    # configs/classify_csv.gin come to 42 % with it.
    "bert_nano": bert(
        embed=128, num_layers=2, num_heads=4, hidden=512, max_length=256, vocab=4096
    ).replace(init=FanInInitSpec(embedding_stddev=0.02)),
}
