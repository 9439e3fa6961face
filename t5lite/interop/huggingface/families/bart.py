"""BART, mBART, PEGASUS and Marian: one layout of tensors, and a few switches set by the class.

Early configs had the switches themselves; transformers 4 and 5 go by `model_type` alone.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import fields, modules
from t5lite.interop.huggingface.families.activations import ACTIVATION
from t5lite.interop.huggingface.families.family import Family, no_heads, tokens
from t5lite.interop.huggingface.families.fields import Config, Field, Fields, Foreign
from t5lite.interop.tensors import Part, Source, Tensor, same_values
from t5lite.layers import (
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    NormalInitSpec,
    PositionEmbeddingSpec,
    SinusoidalPositionsSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec


class Switches(NamedTuple):
    normalize_before: bool
    normalize_embedding: bool
    add_final_layer_norm: bool
    static_position_embeddings: bool


SWITCHES = {
    "bart": Switches(False, True, False, False),
    "mbart": Switches(True, True, True, False),
    "pegasus": Switches(True, False, True, True),
    "marian": Switches(False, False, False, True),
}
FIELDS: Fields = {
    "vocab_size": Field(50265, "vocab"),
    "d_model": Field(1024, "embed"),
    "dropout": Field(0.1, "stack.dropout_rate"),
    "init_std": Field(0.02, "init.stddev"),
    "activation_function": Field("gelu", "mlp.activation", ACTIVATION),
    "max_position_embeddings": Field(1024),
    "scale_embedding": Field(False),
    "tie_word_embeddings": Field(True),
    "share_encoder_decoder_embeddings": Field(True),
    "decoder_vocab_size": Field(None, kind=int),
}
SIDES = ("encoder", "decoder")
SHARED, LOGITS, BIAS = "model.shared.weight", "lm_head.weight", "final_logits_bias"
TABLES = {side: f"model.{side}.embed_tokens.weight" for side in SIDES}
POSITIONS = {side: f"model.{side}.embed_positions.weight" for side in SIDES}
# Rows of computed positions, written because transformers looks for them.
COMPUTED_POSITIONS = 1024
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAYER = {
    **modules.attention("self_attn.{}", _PROJECTIONS),
    **modules.attention("encoder_attn.{}", _PROJECTIONS, "cross_attention"),
    "attention_norm": "self_attn_layer_norm",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
}
NAMES: dict[str, Any] = {"lm_head/projection": "lm_head"}
for _side in SIDES:
    NAMES |= {
        **modules.layers(_side, f"model.{_side}.layers.{{}}", _LAYER),
        f"{_side}/position_embedding": f"model.{_side}.embed_positions",
        f"{_side}/embedding_norm": f"model.{_side}.layernorm_embedding",
        f"{_side}/final_norm": f"model.{_side}.layer_norm",
    }
# Of each stack, after `encoder_` or `decoder_`.
_STACK: Fields = {
    "layers": Field(12, "stack.num_layers"),
    "ffn_dim": Field(4096, "mlp.hidden"),
    "attention_heads": Field(16, "attention.num_heads"),
}
_STACKS = {
    f"{side}_{name}": field._replace(path="", conversion=None)
    for side in SIDES
    for name, field in _STACK.items()
}
TOKENS: dict[str, dict[str, int]] = {
    "bart": {"decoder_start": 2, "eos": 2, "pad": 1, "bos": 0},
    "mbart": {"eos": 2, "pad": 1, "bos": 0},
    "pegasus": {"decoder_start": 0, "eos": 1, "pad": 0},
    "marian": {"decoder_start": 58100, "eos": 0, "pad": 58100},
}
# transformers fixes it.
NORM = LayerNormSpec(1e-5)


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    """Returns ModelSpec's fields; residual dropout serves everywhere."""
    config, switches = foreign.config, SWITCHES[foreign.config["model_type"]]
    _check(config)
    if switches.static_position_embeddings:
        _check_sinusoids(foreign.source, config["d_model"])
    return {
        "encoder": _stack(foreign, "encoder", switches),
        "decoder": _stack(foreign, "decoder", switches),
        "shared_embedding": _is_shared(foreign),
        # mBART's config may lack it: that is the language's token, or the sentence's end.
        "start_id": fields.first_id(config, "decoder_start_token_id", "eos_token_id"),
        "init": NormalInitSpec(**foreign.parts["init"]),
    }


def _check(config: Config) -> None:
    """Raises an InputError for options without a spec, or that contradict the class."""
    model_type, vocab = config["model_type"], config["vocab_size"]
    for name, value in SWITCHES[model_type]._asdict().items():
        if config.get(name, value) != value:
            raise InputError(
                f"{name} = {config[name]!r}: a model of model_type {model_type!r} has {value!r}, "
                "and transformers 4 and 5 do not read the field; remove it from config.json if the "
                "model works there",
                field=name,
            )
    if SWITCHES[model_type].static_position_embeddings and config["d_model"] % 2:
        raise InputError(
            f"d_model = {config['d_model']}: must be even with sinusoidal positions",
            field="d_model",
        )
    decoder_vocab = config["decoder_vocab_size"] or vocab
    if not config["share_encoder_decoder_embeddings"] and decoder_vocab != vocab:
        raise InputError(
            f"decoder_vocab_size = {decoder_vocab}: must equal vocab_size = {vocab}, for encoder "
            "and decoder have one vocabulary",
            field="decoder_vocab_size",
        )


def _check_sinusoids(source: Source, embed: int) -> None:
    """Raises an InputError if stored positions are not the computed sinusoids."""
    for name in POSITIONS.values():
        if name in source.tensors():
            table = np.asarray(source.read(name), np.float32)
            # Stored ones may be bfloat16; computed ones are float32.
            right = table.ndim == 2 and table.shape[1] == embed
            if not right or not np.allclose(table, sinusoids(*table.shape), rtol=0, atol=0.02):
                raise InputError(f"{name} differs from the sinusoids that the class computes")


def _stack(foreign: Foreign, side: str, switches: Switches) -> StackSpec:
    config, embed = foreign.config, foreign.config["d_model"]
    shared = {name: FIELDS[name] for name in ("d_model", "activation_function", "dropout")}
    table = {f"{side}_{name}": field for name, field in _STACK.items()} | shared
    part = fields.read(table, config, foreign.source)
    attention = part.attention(use_bias=True)
    block = TransformerBlockSpec(
        attention,
        part.mlp(use_bias=True),
        norm=NORM,
        cross_attention=attention if side == "decoder" else None,
        norm_placement="before" if switches.normalize_before else "after",
    )
    positions: PositionEmbeddingSpec = SinusoidalPositionsSpec()
    if not switches.static_position_embeddings:
        positions = LearnedPositionsSpec(config["max_position_embeddings"], offset=2)
    return StackSpec(
        blocks=(block,),
        causal=side == "decoder",
        position_embedding=positions,
        embedding_scale=embed**0.5 if config["scale_embedding"] else 1.0,
        embedding_norm=NORM if switches.normalize_embedding else None,
        final_norm=NORM if switches.add_final_layer_norm else None,
        **part.parts["stack"],
    )


def _lm_head(foreign: Foreign) -> tuple[HeadSpec, ...]:
    """Returns the head of the architecture with logits.

    Its bias exists if the file has one: transformers' is zero otherwise. Its table is untied if the
    config says so, or if the file has one that differs, which transformers 5 heeds.
    """
    source = foreign.source
    tied = foreign.config["tie_word_embeddings"]
    tied = tied and same_values(source, LOGITS, _table(source, "decoder"))
    return (LMHeadSpec(tied=bool(tied), use_bias=BIAS in source.tensors()),)


def _is_shared(foreign: Foreign) -> bool:
    """Whether the file has one token table for encoder and decoder.

    With `tie_word_embeddings: false` transformers 5 has two, and 4 has one.
    """
    source = foreign.source
    if not foreign.config["share_encoder_decoder_embeddings"]:
        return False
    return same_values(source, _table(source, "encoder"), _table(source, "decoder"))


def _table(source: Source, side: str) -> str:
    """Returns the name of a stack's token table."""
    return TABLES[side] if TABLES[side] in source.tensors() else SHARED


def _extra(spec: ModelSpec) -> dict[str, Any]:
    encoder, head = fields.stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    content: dict[str, Any] = {
        **fields.write(_STACK, spec, "encoder", prefix="encoder_"),
        **fields.write(_STACK, spec, "decoder", prefix="decoder_"),
        "attention_dropout": encoder.dropout_rate,
        "activation_dropout": encoder.dropout_rate,
        "scale_embedding": encoder.embedding_scale != 1.0,
        "max_position_embeddings": encoder.max_length or COMPUTED_POSITIONS,
        # Where the file has tables of their own, transformers 5 heeds that; with False, it would
        # look for three of them, whichever are shared.
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        **{f"{name}_token_id": token for name, token in TOKENS[spec.family].items()},
        "decoder_start_token_id": spec.start_id,
        # The classes' own default changes the generated text.
        "forced_eos_token_id": None,
    }
    if spec.family == "marian":
        content["decoder_vocab_size"] = spec.vocab
        content["pad_token_id"] = spec.start_id
        content["share_encoder_decoder_embeddings"] = spec.shared_embedding
        if isinstance(head, LMHeadSpec) and not spec.shared_embedding:
            content["tie_word_embeddings"] = head.tied
    return content


def tensors(spec: ModelSpec) -> list[Tensor]:
    names, aliases, logits = dict(NAMES), {SHARED: tuple(TABLES.values())}, (LOGITS,)
    names["token_embedding"] = SHARED.removesuffix(".weight")
    tied = {SHARED: logits}
    extra: list[Tensor] = []
    if not spec.shared_embedding:
        names["token_embedding"] = TABLES["decoder"].removesuffix(".weight")
        names["encoder_embedding"] = TABLES["encoder"].removesuffix(".weight")
        tied = {TABLES["decoder"]: logits}
        extra.append(Tensor(SHARED, (spec.vocab, spec.embed), ()))  # which nothing reads
    for side in SIDES:
        if not isinstance(fields.stack_of(spec, side).position_embedding, LearnedPositionsSpec):
            shape = (COMPUTED_POSITIONS, spec.embed)
            constant = functools.partial(sinusoids, *shape)
            extra.append(Tensor(POSITIONS[side], shape, (), constant=constant))
    head = spec.heads[0] if spec.heads else None
    if isinstance(head, LMHeadSpec) and head.use_bias:
        path = "lm_head/bias" if head.tied else "lm_head/projection/bias"
        extra.append(Tensor(BIAS, (1, spec.vocab), (Part(path, None, lambda array: array[0]),)))
    result = modules.tensors_of(spec, names, aliases=aliases, tied=tied)
    return [tensor for tensor in result if tensor.name != "lm_head.bias"] + extra


def sinusoids(length: int, embed: int) -> np.ndarray:
    """Returns PEGASUS's and Marian's positions, `[length, embed]` float32: sines, then cosines.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, embed, 2) / embed)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _family(model_type: str, classes: str, lm: str = "ForConditionalGeneration") -> Family:
    table = {**FIELDS, **_STACKS, **tokens(**TOKENS[model_type])}
    if model_type == "marian":
        table["vocab_size"] = Field(58101, "vocab")
    return Family(
        classes,
        table,
        {lm: _lm_head, "Model": no_heads},
        _spec_parts,
        _extra,
        tensors,
        lm=lm,
        side="encoder",
        prefix="model.",
        # mBART and PEGASUS began as subclasses of BART, and some of their configs name it.
        also="Bart",
        ignored=(r"model\.(encoder|decoder)\.version",),  # fairseq's
    )


FAMILIES = {
    "bart": _family("bart", "Bart"),
    "mbart": _family("mbart", "MBart"),
    "pegasus": _family("pegasus", "Pegasus"),
    "marian": _family("marian", "Marian", "MTModel"),
}
