"""Published architectures, once each, as values; and `override` for everything in between."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from t5lite.errors import InputError, unknown
from t5lite.layers import (
    AttentionSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    RelativeBiasSpec,
    RMSNormSpec,
    RotarySpec,
    Spec,
)
from t5lite.models.block import BlockSpec
from t5lite.models.spec import ModelSpec, StackSpec


def t5(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    mlp: MlpSpec,
    tied_logits: bool,
    head_dim: int = 64,
    vocab: int = 32128,
    dropout_rate: float,
) -> ModelSpec:
    """Returns a T5: encoder and decoder equally deep, relative bias, RMS norm, unscaled logits.

    Source: Raffel et al. 2020, arXiv:1910.10683, §2.1 and §3.7.
    """
    attention = AttentionSpec(num_heads, head_dim, logits_scale=1.0)
    stack = functools.partial(
        StackSpec,
        num_layers,
        position_bias=RelativeBiasSpec(),
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="t5",
        vocab=vocab,
        embed=embed,
        encoder=stack((BlockSpec(attention, mlp),), causal=False),
        decoder=stack((BlockSpec(attention, mlp, cross_attention=attention),), causal=True),
        heads=(LMHeadSpec(tied=True, logits_scale=None) if tied_logits else LMHeadSpec(),),
    )


# T5 v1.0, arXiv:1910.10683, §3.7: ReLU, logits from the token embedding, dropout 0.1.
t5_1_0 = functools.partial(t5, tied_logits=True, dropout_rate=0.1)
# T5 v1.1 (google-research/text-to-text-transfer-transformer, released_checkpoints.md): gated GELU,
# a table of its own for the logits, no dropout in pre-training (fine-tune with 0.1).
t5_1_1 = functools.partial(t5, tied_logits=False, dropout_rate=0.0)


def bert(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    max_length: int = 512,
    vocab: int = 30522,
    dropout_rate: float = 0.1,
) -> ModelSpec:
    """Returns a BERT: an encoder with norms after its sublayers, and the masked-LM head.

    Source: Devlin et al. 2018, arXiv:1810.04805, §3, and the authors' `modeling.py`.
    """
    norm = LayerNormSpec(1e-12)
    block = BlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(hidden, "gelu", use_bias=True),
        norm=norm,
        post_norm=True,
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
        heads=(MaskedLMHeadSpec(),),
        num_token_types=2,
        embedding_stddev=0.02,
    )


def gpt2(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    max_length: int = 1024,
    vocab: int = 50257,
    dropout_rate: float = 0.1,
) -> ModelSpec:
    """Returns a GPT-2: a decoder with learned positions and logits from the token embedding.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3.
    """
    norm = LayerNormSpec(1e-5)
    block = BlockSpec(
        AttentionSpec(num_heads, embed // num_heads, use_bias=True),
        MlpSpec(4 * embed, "gelu_tanh", use_bias=True),
        norm=norm,
    )
    decoder = StackSpec(
        num_layers,
        (block,),
        causal=True,
        position_embedding=LearnedPositionsSpec(max_length),
        final_norm=norm,
        dropout_rate=dropout_rate,
    )
    return ModelSpec(
        family="gpt2",
        vocab=vocab,
        embed=embed,
        decoder=decoder,
        heads=(LMHeadSpec(tied=True),),
        embedding_stddev=0.02,
    )


def llama(
    *,
    embed: int,
    num_layers: int,
    num_heads: int,
    hidden: int,
    num_kv_heads: int | None = None,
    vocab: int = 32000,
) -> ModelSpec:
    """Returns a LLaMA: a decoder with rotary positions, RMS norms and gated MLPs, no biases.

    Source: Touvron et al. 2023, arXiv:2302.13971, §2.2, and arXiv:2307.09288, §2.2.
    """
    norm = RMSNormSpec(1e-5)
    block = BlockSpec(
        AttentionSpec(num_heads, embed // num_heads, num_kv_heads, rotary=RotarySpec()),
        MlpSpec(hidden, "silu", gated=True),
        norm=norm,
    )
    return ModelSpec(
        family="llama",
        vocab=vocab,
        embed=embed,
        decoder=StackSpec(num_layers, (block,), causal=True, final_norm=norm),
        embedding_stddev=0.02,
    )


def _relu(hidden: int) -> MlpSpec:
    return MlpSpec(hidden, "relu")


def _gated(hidden: int) -> MlpSpec:
    return MlpSpec(hidden, "gelu_tanh", gated=True)


PRESETS: dict[str, ModelSpec] = {
    "t5_small": t5_1_0(embed=512, num_layers=6, num_heads=8, mlp=_relu(2048)),
    "t5_base": t5_1_0(embed=768, num_layers=12, num_heads=12, mlp=_relu(3072)),
    "t5_large": t5_1_0(embed=1024, num_layers=24, num_heads=16, mlp=_relu(4096)),
    "t5_3b": t5_1_0(embed=1024, num_layers=24, num_heads=32, head_dim=128, mlp=_relu(16384)),
    "t5_11b": t5_1_0(embed=1024, num_layers=24, num_heads=128, head_dim=128, mlp=_relu(65536)),
    "t5_1_1_small": t5_1_1(embed=512, num_layers=8, num_heads=6, mlp=_gated(1024)),
    "t5_1_1_base": t5_1_1(embed=768, num_layers=12, num_heads=12, mlp=_gated(2048)),
    "t5_1_1_large": t5_1_1(embed=1024, num_layers=24, num_heads=16, mlp=_gated(2816)),
    "t5_1_1_xl": t5_1_1(embed=2048, num_layers=24, num_heads=32, mlp=_gated(5120)),
    "t5_1_1_xxl": t5_1_1(embed=4096, num_layers=24, num_heads=64, mlp=_gated(10240)),
    "bert_base": bert(embed=768, num_layers=12, num_heads=12, hidden=3072),
    "bert_large": bert(embed=1024, num_layers=24, num_heads=16, hidden=4096),
    "gpt2": gpt2(embed=768, num_layers=12, num_heads=12),
    "gpt2_medium": gpt2(embed=1024, num_layers=24, num_heads=16),
    "gpt2_large": gpt2(embed=1280, num_layers=36, num_heads=20),
    "gpt2_xl": gpt2(embed=1600, num_layers=48, num_heads=25),
    "llama2_7b": llama(embed=4096, num_layers=32, num_heads=32, hidden=11008),
    "llama2_13b": llama(embed=5120, num_layers=40, num_heads=40, hidden=13824),
    "llama2_70b": llama(embed=8192, num_layers=80, num_heads=64, hidden=28672, num_kv_heads=8),
    # For a laptop: sizes of our own.
    "t5_nano": t5_1_0(
        embed=128, num_layers=2, num_heads=4, head_dim=32, mlp=_relu(512), vocab=4096
    ),
    "t5_1_1_nano": t5_1_1(
        embed=128, num_layers=2, num_heads=4, head_dim=32, mlp=_gated(320), vocab=4096
    ),
    "bert_nano": bert(embed=128, num_layers=2, num_heads=4, hidden=512, max_length=256, vocab=4096),
    "gpt_nano": gpt2(
        embed=128, num_layers=2, num_heads=4, max_length=256, vocab=4096, dropout_rate=0.0
    ),
    "llama_nano": llama(
        embed=128, num_layers=2, num_heads=4, num_kv_heads=2, hidden=320, vocab=4096
    ),
}


def preset(name: str) -> ModelSpec:
    """Returns the spec of a published architecture.

    Raises:
      InputError: for an unknown name, with the nearest ones.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def override(model: str | ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """Returns a spec with some values changed, addressed by their path.

    Args:
      model: a preset's name or a spec.
      changes: path → value. A step of a path is a field's name, the index of a block, or `*` for
        every block (or, in front, for every stack), e.g. `{"decoder.blocks.*.mlp.hidden": 4096,
        "*.dropout_rate": 0.1}`.

    Raises:
      InputError: if a path does not exist (with the nearest names) or a value does not fit.
    """
    spec = preset(model) if isinstance(model, str) else model
    for path, value in changes.items():
        spec = _set(spec, path.split("."), value, path)
    return spec


def _set(node: Any, steps: list[str], value: Any, path: str) -> Any:
    if not steps:
        return tuple(value) if isinstance(value, list) else value
    step, *rest = steps
    if isinstance(node, tuple):
        chosen = range(len(node)) if step == "*" else _indices(node, step, path)
        return tuple(
            _set(item, rest, value, path) if index in chosen else item
            for index, item in enumerate(node)
        )
    if not isinstance(node, Spec):
        raise InputError(f"override {path!r}: nothing below {node!r} has a field {step!r}")
    fields = [field.name for field in dataclasses.fields(node)]
    if step == "*":
        names = [name for name in fields if isinstance(getattr(node, name), StackSpec)]
        if not names:
            raise InputError(f"override {path!r}: `*` stands for every stack or every block")
    elif step not in fields:
        raise unknown(f"field in override {path!r}", step, fields)
    else:
        names = [step]
    return node.replace(**{n: _set(getattr(node, n), rest, value, path) for n in names})


def _indices(node: tuple, step: str, path: str) -> list[int]:
    if not step.isdigit() or int(step) >= len(node):
        raise InputError(f"override {path!r}: {step!r} is neither `*` nor below {len(node)}")
    return [int(step)]
