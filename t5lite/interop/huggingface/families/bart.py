"""BART, mBART, PEGASUS and Marian: one layout of tensors, and a few switches that the class sets.

Early configs had the switches themselves; transformers 4 and 5 go by `model_type` alone.
"""

from typing import Any, NamedTuple

import numpy as np

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import family
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.bart_tensors import (
    BIAS,
    COMPUTED_POSITIONS,
    LOGITS,
    POSITIONS,
    SHARED,
    TABLES,
    sinusoids,
    tensors,
)
from t5lite.interop.tensors import Source, same_values
from t5lite.layers import (
    AttentionSpec,
    HeadSpec,
    LayerNormSpec,
    LearnedPositionsSpec,
    LMHeadSpec,
    MlpSpec,
    NormalInitSpec,
    PositionEmbeddingSpec,
    SinusoidalPositionsSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

# What architectures begin with, and how that with logits ends.
ARCHITECTURES = {
    "bart": ("Bart", "ForConditionalGeneration"),
    "mbart": ("MBart", "ForConditionalGeneration"),
    "pegasus": ("Pegasus", "ForConditionalGeneration"),
    "marian": ("Marian", "MTModel"),
}


class Switches(NamedTuple):
    """The fields of early configs that a class sets."""

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
# Of transformers' config classes: what equals them may be left out of config.json.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "init_std": 0.02,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "share_encoder_decoder_embeddings": True,
}
TOKENS: dict[str, dict[str, Any]] = {
    "bart": {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
    "mbart": {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0},
    "pegasus": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    "marian": {
        "vocab_size": 58101,
        "decoder_start_token_id": 58100,
        "eos_token_id": 0,
        "pad_token_id": 58100,
    },
}
# transformers fixes it.
NORM = LayerNormSpec(1e-5)


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`. Dropout is that of residuals, everywhere."""
    model_type = config["model_type"]
    config, switches = {**DEFAULTS, **TOKENS[model_type], **config}, SWITCHES[model_type]
    check(config, model_type)
    if switches.static_position_embeddings:
        check_sinusoids(source, config["d_model"])
    classes, lm = ARCHITECTURES[model_type]
    heads: dict[str, family.Heads] = {lm: lm_head, "Model": family.no_heads}
    return ModelSpec(
        family=model_type,
        vocab=config["vocab_size"],
        embed=config["d_model"],
        encoder=stack(config, "encoder", switches),
        decoder=stack(config, "decoder", switches),
        # mBART and PEGASUS began as subclasses of BART, and some of their configs name it.
        heads=family.heads_of(classes, heads, config, source, also="Bart"),
        shared_embedding=is_shared(config, source),
        # mBART's config may not say it: that is the language's token, or the sentence's end.
        start_id=family.first_id(config, "decoder_start_token_id", "eos_token_id"),
        init=NormalInitSpec(config["init_std"]),
    )


def check(config: family.Config, model_type: str) -> None:
    """Raises an InputError for what no spec of ours is, or what contradicts the class."""
    for name, value in SWITCHES[model_type]._asdict().items():
        if config.get(name, value) != value:
            raise InputError(
                f"{name} = {config[name]!r}: a model of model_type {model_type!r} has {value!r}, "
                "and transformers 4 and 5 do not read the field; remove it from config.json if the "
                "model works there",
                field=name,
            )
    embed, vocab = config["d_model"], config["vocab_size"]
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        if embed % config[name]:
            raise InputError(
                f"d_model = {embed} is not a multiple of {name} = {config[name]}", field="d_model"
            )
    if SWITCHES[model_type].static_position_embeddings and embed % 2:
        raise InputError(
            f"d_model = {embed}: must be even with sinusoidal positions", field="d_model"
        )
    decoder_vocab = config.get("decoder_vocab_size") or vocab
    if not config["share_encoder_decoder_embeddings"] and decoder_vocab != vocab:
        raise InputError(
            f"decoder_vocab_size = {decoder_vocab}: must equal vocab_size = {vocab}, for encoder "
            "and decoder have one vocabulary",
            field="decoder_vocab_size",
        )


def check_sinusoids(source: Source, embed: int) -> None:
    """Raises an InputError if a file's positions are not the sinusoids that the model computes."""
    for name in POSITIONS.values():
        if name in source.tensors():
            table = np.asarray(source.read(name), np.float32)
            # They may be in bfloat16, and computed in float32.
            right = table.ndim == 2 and table.shape[1] == embed
            if not right or not np.allclose(table, sinusoids(*table.shape), rtol=0, atol=0.02):
                raise InputError(f"{name} differs from the sinusoids that the class computes")


def stack(config: family.Config, side: str, switches: Switches) -> StackSpec:
    """Returns the encoder or the decoder."""
    embed, num_heads = config["d_model"], config[f"{side}_attention_heads"]
    attention = AttentionSpec(num_heads, embed // num_heads, use_bias=True)
    block = TransformerBlockSpec(
        attention,
        MlpSpec(
            config[f"{side}_ffn_dim"],
            activation(config["activation_function"], "activation_function"),
            use_bias=True,
        ),
        norm=NORM,
        cross_attention=attention if side == "decoder" else None,
        norm_placement="before" if switches.normalize_before else "after",
    )
    positions: PositionEmbeddingSpec = SinusoidalPositionsSpec()
    if not switches.static_position_embeddings:
        positions = LearnedPositionsSpec(config["max_position_embeddings"], offset=2)
    return StackSpec(
        config[f"{side}_layers"],
        (block,),
        causal=side == "decoder",
        position_embedding=positions,
        embedding_scale=embed**0.5 if config["scale_embedding"] else 1.0,
        embedding_norm=NORM if switches.normalize_embedding else None,
        final_norm=NORM if switches.add_final_layer_norm else None,
        dropout_rate=config["dropout"],
    )


def lm_head(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    """Returns the head of the architecture with logits.

    A bias of the logits is there if the file has one: transformers' is zero otherwise. Their table
    is their own if the config says so, or if it is there and differs, which transformers 5 heeds.
    """
    tied = config["tie_word_embeddings"] and same_values(source, LOGITS, _table(source, "decoder"))
    return (LMHeadSpec(tied=bool(tied), use_bias=BIAS in source.tensors()),)


def is_shared(config: family.Config, source: Source) -> bool:
    """Returns whether encoder and decoder look up the same table, by the file's content.

    With `tie_word_embeddings: false` transformers 5 has two, and 4 has one.
    """
    if not config["share_encoder_decoder_embeddings"]:
        return False
    return same_values(source, _table(source, "encoder"), _table(source, "decoder"))


def _table(source: Source, side: str) -> str:
    """Returns the name of a stack's table of tokens."""
    return TABLES[side] if TABLES[side] in source.tensors() else SHARED


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    encoder, decoder = family.stack_of(spec, "encoder"), family.stack_of(spec, "decoder")
    head = spec.heads[0] if spec.heads else None
    classes, lm = ARCHITECTURES[spec.family]
    mlps = [family.expect(stack.blocks[0].mlp, MlpSpec, "mlp") for stack in (encoder, decoder)]
    content: dict[str, Any] = {
        "architectures": [classes + (lm if spec.heads else "Model")],
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "d_model": spec.embed,
        "activation_function": activation_name(mlps[0].activation),
        "dropout": encoder.dropout_rate,
        "attention_dropout": encoder.dropout_rate,
        "activation_dropout": encoder.dropout_rate,
        "init_std": family.initial_stddev(spec),
        "scale_embedding": encoder.embedding_scale != 1.0,
        "max_position_embeddings": encoder.max_length or COMPUTED_POSITIONS,
        # Where the file has tables of their own, transformers 5 heeds that; with False, it would
        # look for three of them, whichever are shared.
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        **TOKENS[spec.family],
        "decoder_start_token_id": spec.start_id,
        # The classes' own default changes what is generated.
        "forced_eos_token_id": None,
    }
    for side, stack, mlp in zip(("encoder", "decoder"), (encoder, decoder), mlps, strict=True):
        content[f"{side}_layers"] = stack.num_layers
        content[f"{side}_attention_heads"] = stack.blocks[0].attention.num_heads
        content[f"{side}_ffn_dim"] = mlp.hidden
    if spec.family == "marian":
        content["vocab_size"] = content["decoder_vocab_size"] = spec.vocab
        content["pad_token_id"] = spec.start_id
        content["share_encoder_decoder_embeddings"] = spec.shared_embedding
        if isinstance(head, LMHeadSpec) and not spec.shared_embedding:
            content["tie_word_embeddings"] = head.tied
    return content


FAMILIES = {
    model_type: family.Family(
        spec,
        config,
        tensors,
        classes,
        prefix="model.",
        ignored=(r"model\.(encoder|decoder)\.version",),  # fairseq's
    )
    for model_type, (classes, _) in ARCHITECTURES.items()
}
