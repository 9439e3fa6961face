"""BART, and what was made after it: mBART, PEGASUS and Marian's OPUS-MT."""

from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    SinusoidalPositionsSpec,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def bart(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    vocab: int = 50265,
    family: str = "bart",
    activation: str = "gelu",
    learned_positions: bool = True,
    embedding_norm: bool = True,
    norms_before: bool = False,
    scaled_embedding: bool = False,
    logits_bias: bool = False,
    start_id: int = 2,
    max_length: int = 1024,
) -> ModelSpec:
    """Returns a BART: as the original Transformer, with learned positions and normed embeddings.

    Source: Lewis et al. 2019, arXiv:1910.13461, §2.1, and fairseq's `bart/model.py`; the table of
    positions has two more rows than there are positions, from fairseq's padding index. Initial
    values: fairseq's `init_bert_params`; mBART, PEGASUS and Marian: `init_std` of config.json.
    """
    norm = LayerNormSpec(1e-5)
    attention = AttentionSpec(num_heads, embed // num_heads, use_bias=True)
    mlp = MlpSpec(hidden, activation, use_bias=True)

    def stack(*, causal: bool) -> StackSpec:
        block = TransformerBlockSpec(
            attention,
            mlp,
            norm=norm,
            cross_attention=attention if causal else None,
            norm_placement="before" if norms_before else "after",
        )
        return StackSpec(
            num_layers,
            (block,),
            causal=causal,
            position_embedding=LearnedPositionsSpec(max_length, offset=2)
            if learned_positions
            else SinusoidalPositionsSpec(),
            embedding_scale=embed**0.5 if scaled_embedding else 1.0,
            embedding_norm=norm if embedding_norm else None,
            final_norm=norm if norms_before else None,
            dropout_rate=0.1,
        )

    return ModelSpec(
        family=family,
        vocab=vocab,
        embed=embed,
        encoder=stack(causal=False),
        decoder=stack(causal=True),
        heads=(LMHeadSpec(tied=True, use_bias=logits_bias),),
        start_id=start_id,
        init=NormalInitSpec(0.02),
    )


def mbart(*, vocab: int) -> ModelSpec:
    """Returns an mBART: BART's large size with norms before sublayers and scaled embeddings.

    The token that a decoder reads first is the end of a sentence; cc25 is trained to read the
    language's token there instead, which differs from row to row.

    Source: Liu et al. 2020, arXiv:2001.08210, §2.2; Tang et al. 2020, arXiv:2008.00401, §3.
    """
    return bart(
        family="mbart",
        embed=1024,
        num_layers=12,
        num_heads=16,
        hidden=4096,
        vocab=vocab,
        norms_before=True,
        scaled_embedding=True,
    )


def pegasus(
    *, embed: int, num_layers: int, num_heads: int, hidden: int, vocab: int = 96103
) -> ModelSpec:
    """Returns a PEGASUS: norms before sublayers, sinusoidal positions, ReLU.

    Source: Zhang et al. 2019, arXiv:1912.08777, §4 and §6.
    """
    return bart(
        family="pegasus",
        embed=embed,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden=hidden,
        vocab=vocab,
        activation="relu",
        learned_positions=False,
        embedding_norm=False,
        norms_before=True,
        scaled_embedding=True,
        start_id=0,
    )


def marian(
    *, embed: int, num_layers: int, num_heads: int, hidden: int, activation: str, vocab: int
) -> ModelSpec:
    """Returns a Marian transformer, as OPUS-MT's are: the original one with a bias on the logits.

    Its padding, the last of its vocabulary, is what the decoder reads first.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3; Junczys-Dowmunt et al. 2018,
    arXiv:1804.00344; Tiedemann and Thottingal 2020, "OPUS-MT", EAMT.
    """
    return bart(
        family="marian",
        embed=embed,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden=hidden,
        vocab=vocab,
        activation=activation,
        learned_positions=False,
        embedding_norm=False,
        scaled_embedding=True,
        logits_bias=True,
        start_id=vocab - 1,
    )


PRESETS: dict[str, ModelSpec] = {
    "bart_base": bart(embed=768, num_layers=6, num_heads=12, hidden=3072),
    "bart_large": bart(embed=1024, num_layers=12, num_heads=16, hidden=4096),
    # The fine-tuned bart-large-cnn and bart-large-xsum, which lack the mask token.
    "bart_large_cnn": bart(embed=1024, num_layers=12, num_heads=16, hidden=4096, vocab=50264),
    "mbart_large_cc25": mbart(vocab=250027),
    "mbart_large_50": mbart(vocab=250054),
    "pegasus_large": pegasus(embed=1024, num_layers=16, num_heads=16, hidden=4096),
    # opus-mt-en-de and opus-mt-tc-big-fr-en; other languages' differ by their vocabularies.
    "marian_base": marian(
        embed=512, num_layers=6, num_heads=8, hidden=2048, activation="silu", vocab=58101
    ),
    "marian_big": marian(
        embed=1024, num_layers=6, num_heads=16, hidden=4096, activation="relu", vocab=53017
    ),
}
