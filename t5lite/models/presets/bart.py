"""BART and its successors: mBART, PEGASUS and Marian's OPUS-MT."""

import functools

from t5lite.layers import (
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    NormalInitSpec,
    SinusoidalPositionsSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.presets.sizes import Sizes
from t5lite.models.spec import ModelSpec, StackSpec


def bart(
    sizes: Sizes,
    *,
    vocab: int = 50265,
    family: str = "bart",
    activation: str = "gelu",
    learned_positions: bool = True,
    embedding_norm: bool = True,
    norms_before: bool = False,
    scaled_embedding: bool = False,
    logits_bias: bool = False,
    start_id: int = 2,
) -> ModelSpec:
    """Returns a BART: the original Transformer with learned positions and normed embeddings.

    Source: Lewis et al. 2019, arXiv:1910.13461, §2.1, and fairseq's `bart/model.py`, whose padding
    index adds two rows of positions. Initial values: fairseq's `init_bert_params`; mBART, PEGASUS
    and Marian: `init_std` of config.json.
    """
    norm, attention = LayerNormSpec(1e-5), sizes.attention(use_bias=True)
    positions = LearnedPositionsSpec(1024, offset=2)

    def stack(*, causal: bool) -> StackSpec:
        block = TransformerBlockSpec(
            attention,
            sizes.mlp(activation, use_bias=True),
            norm=norm,
            cross_attention=attention if causal else None,
            norm_placement="before" if norms_before else "after",
        )
        return StackSpec(
            sizes.num_layers,
            (block,),
            causal=causal,
            position_embedding=positions if learned_positions else SinusoidalPositionsSpec(),
            embedding_scale=sizes.embed**0.5 if scaled_embedding else 1.0,
            embedding_norm=norm if embedding_norm else None,
            final_norm=norm if norms_before else None,
            dropout_rate=0.1,
        )

    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=sizes.embed,
        encoder=stack(causal=False),
        decoder=stack(causal=True),
        heads=(LMHeadSpec(tied=True, use_bias=logits_bias),),
        start_id=start_id,
        init=NormalInitSpec(0.02),
    )


_LARGE = Sizes(1024, 12, 16)
# Liu et al. 2020, arXiv:2001.08210, §2.2; Tang et al. 2020, arXiv:2008.00401, §3. The decoder reads
# the end of a sentence first; cc25 is trained to read the language's token there instead, which
# differs from row to row.
mbart = functools.partial(bart, _LARGE, family="mbart", norms_before=True, scaled_embedding=True)
_sinusoidal = functools.partial(
    bart, learned_positions=False, embedding_norm=False, scaled_embedding=True
)
# Zhang et al. 2019, arXiv:1912.08777, §4 and §6.
pegasus = functools.partial(
    _sinusoidal, family="pegasus", vocab=96103, activation="relu", norms_before=True, start_id=0
)


def marian(sizes: Sizes, *, activation: str, vocab: int) -> ModelSpec:
    """Returns OPUS-MT's Marian: the original transformer, a bias on logits, and padding read first.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3; Junczys-Dowmunt et al. 2018,
    arXiv:1804.00344; Tiedemann and Thottingal 2020, "OPUS-MT", EAMT.
    """
    marian = functools.partial(_sinusoidal, family="marian", logits_bias=True)
    return marian(sizes, activation=activation, vocab=vocab, start_id=vocab - 1)


PRESETS: dict[str, ModelSpec] = {
    "bart_base": bart(Sizes(768, 6, 12)),
    "bart_large": bart(_LARGE),
    # The fine-tuned bart-large-cnn and bart-large-xsum, which lack the mask token.
    "bart_large_cnn": bart(_LARGE, vocab=50264),
    "mbart_large_cc25": mbart(vocab=250027),
    "mbart_large_50": mbart(vocab=250054),
    "pegasus_large": pegasus(Sizes(1024, 16, 16)),
    # opus-mt-en-de and opus-mt-tc-big-fr-en; other languages' differ by their vocabularies.
    "marian_base": marian(Sizes(512, 6, 8), activation="silu", vocab=58101),
    "marian_big": marian(Sizes(1024, 6, 16), activation="relu", vocab=53017),
}
