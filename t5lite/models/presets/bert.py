"""BERT and its relatives: RoBERTa, XLM-RoBERTa, DistilBERT, ALBERT, ELECTRA and ModernBERT."""

import functools
from typing import Any

from t5lite.layers import (
    AttentionSpec,
    FanInInitSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    MaskedLMHeadSpec,
    NormalInitSpec,
    ReplacedTokensHeadSpec,
    RotarySpec,
    TruncatedNormalInitSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import BASE, LARGE, Sizes
from t5lite.models.spec import ModelSpec, StackSpec


def bert(
    sizes: Sizes,
    *,
    vocab: int = 30522,
    family: str = "bert",
    max_length: int = 512,
    offset: int = 0,
    epsilon: float = 1e-12,
    activation: str = "gelu",
    shared_layers: bool = False,
    dropout_rate: float = 0.1,
    **fields: Any,
) -> ModelSpec:
    """Returns a BERT: an encoder with norms after its sublayers, and the masked-LM head.

    Source: Devlin et al. 2018, arXiv:1810.04805, §3, and the authors' `modeling.py`.
    """
    norm = LayerNormSpec(epsilon)
    mlp = sizes.mlp(activation, use_bias=True)
    block = TransformerBlockSpec(
        sizes.attention(use_bias=True), mlp, norm=norm, norm_placement="after"
    )
    encoder = StackSpec(
        sizes.num_layers,
        (block,),
        causal=False,
        shared_layers=shared_layers,
        position_embedding=LearnedPositionsSpec(max_length, offset),
        embedding_norm=norm,
        final_norm=None,
        dropout_rate=dropout_rate,
    )
    defaults: dict[str, Any] = {
        "heads": (MaskedLMHeadSpec(activation, norm),),
        "num_token_types": 2,
        "init": TruncatedNormalInitSpec(0.02),
    }
    return ModelSpec(
        family=family, vocab=vocab, embed=sizes.embed, encoder=encoder, **defaults | fields
    )


def modernbert(sizes: Sizes) -> ModelSpec:
    """Returns a ModernBERT: every third layer sees everything, the others 64 tokens either way.

    Source: Warner et al. 2024, arXiv:2412.13663, §2.1 and table 4; initial values, appendix A
      ("Megatron initialization"), which are for the head's dense layer as for the others here.
    """
    norm = LayerNormSpec(1e-5, use_bias=False)

    def block(attention: AttentionSpec, *, attention_norm: bool = True) -> TransformerBlockSpec:
        mlp = sizes.mlp("gelu", gated=True)
        return TransformerBlockSpec(attention, mlp, norm=norm, attention_norm=attention_norm)

    everywhere = sizes.attention(rotary=RotarySpec(160_000.0))
    nearby = sizes.attention(rotary=RotarySpec(10_000.0), window=64)
    encoder = StackSpec(
        sizes.num_layers,
        (block(nearby), block(nearby), block(everywhere)),
        causal=False,
        first_blocks=(block(everywhere, attention_norm=False),),
        embedding_norm=norm,
        final_norm=norm,
    )
    return ModelSpec(
        family="modernbert",
        vocab=50368,
        embed=sizes.embed,
        encoder=encoder,
        heads=(MaskedLMHeadSpec("gelu", norm, use_bias=False),),
        init=TruncatedNormalInitSpec(0.02, scaled_residuals=True),
    )


# Liu et al. 2019, arXiv:1907.11692, §3 and §4.4; XLM-RoBERTa: Conneau et al. 2019,
# arXiv:1911.02116, §3 and appendix B. Padding has id 1 in both, hence two unused rows of positions.
# Initial values: fairseq's `init_bert_params`, a normal distribution that is not truncated.
roberta = functools.partial(
    bert,
    vocab=50265,
    family="roberta",
    offset=2,
    epsilon=1e-5,
    num_token_types=1,
    init=NormalInitSpec(0.02),
)
# Sanh et al. 2019, arXiv:1910.01108, §3; initial values: the authors' code.
distilbert = functools.partial(
    bert, Sizes(768, 6, 12), family="distilbert", num_token_types=None, init=NormalInitSpec(0.02)
)
# Lan et al. 2019, arXiv:1909.11942, §3.1 and table 1, and the authors' `modeling.py`, whose GELU is
# the tanh-approximated one.
albert = functools.partial(
    bert,
    vocab=30000,
    family="albert",
    activation="gelu_tanh",
    shared_layers=True,
    embedding_size=128,
)
_ALBERTS = {
    "base": BASE,
    "large": LARGE,
    "xlarge": Sizes(2048, 24, 16),
    "xxlarge": Sizes(4096, 12, 64),
}
# Clark et al. 2020, arXiv:2003.10555, §2, §3.2 and appendix A, and the authors' code. A generator
# shares the discriminator's embedding. The released small one is as large as its discriminator
# (small++, the authors' README), the others are a third and a quarter as wide.
electra = functools.partial(bert, family="electra")
_discriminator = functools.partial(electra, heads=(ReplacedTokensHeadSpec(),))
_SMALL = Sizes(256, 12, 4)

PRESETS: dict[str, ModelSpec] = {
    "bert_base": bert(BASE),
    "bert_large": bert(LARGE),
    "bert_base_cased": bert(BASE, vocab=28996),
    "bert_large_cased": bert(LARGE, vocab=28996),
    "bert_base_multilingual_cased": bert(BASE, vocab=119547),
    "roberta_base": roberta(BASE),
    "roberta_large": roberta(LARGE),
    "xlm_roberta_base": roberta(BASE, vocab=250002, family="xlm-roberta"),
    "xlm_roberta_large": roberta(LARGE, vocab=250002, family="xlm-roberta"),
    "distilbert_base": distilbert(),
    "distilbert_base_cased": distilbert(vocab=28996),
    "distilbert_base_multilingual_cased": distilbert(vocab=119547),
    # Drawn by fan-in: BERT's 0.02 is for widths of 768 and more. At this one, the 500 steps of
    # configs/classify_csv.gin come to 42 % with it.
    "bert_nano": bert(
        Sizes(128, 2, 4), max_length=256, vocab=4096, init=FanInInitSpec(embedding_stddev=0.02)
    ),
    # v2 (the authors' README) was trained longer, on more data, and without dropout, as v1's
    # xxlarge was.
    **{
        f"albert_{name}_v1": albert(sizes, dropout_rate=0.0 if name == "xxlarge" else 0.1)
        for name, sizes in _ALBERTS.items()
    },
    **{f"albert_{name}_v2": albert(sizes, dropout_rate=0.0) for name, sizes in _ALBERTS.items()},
    "electra_small_discriminator": _discriminator(_SMALL, embedding_size=128),
    "electra_base_discriminator": _discriminator(BASE),
    "electra_large_discriminator": _discriminator(LARGE),
    "electra_small_generator": electra(_SMALL, embedding_size=128),
    "electra_base_generator": electra(_SMALL, embedding_size=768),
    "electra_large_generator": electra(Sizes(256, 24, 4), embedding_size=1024),
    "modernbert_base": modernbert(Sizes(768, 22, 12, 1152)),
    "modernbert_large": modernbert(Sizes(1024, 28, 16, 2624)),
}
