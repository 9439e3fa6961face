"""T5, mT5 and UMT5; ByT5, FLAN-T5 and the LM-adapted T5 are T5 by their configs."""

from collections.abc import Mapping
from typing import Any

from t5lite.interop.huggingface.families import activations, fields, labels, modules
from t5lite.interop.huggingface.families.family import Family, no_heads
from t5lite.interop.huggingface.families.fields import Config, Field, Fields, Foreign, Heads
from t5lite.interop.tensors import Source, Tensor, same_values
from t5lite.layers import (
    FanInInitSpec,
    HeadSpec,
    LMHeadSpec,
    MlpSpec,
    MoeSpec,
    RelativeBiasSpec,
    RMSNormSpec,
    TokenLabelsHeadSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

LM, BASE, ENCODER = "ForConditionalGeneration", "Model", "EncoderModel"
TOKENS = labels.SUFFIXES[TokenLabelsHeadSpec]
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
BIAS = "0.SelfAttention.relative_attention_bias"
# Those that Switch has too.
COMMON: Fields = {
    "vocab_size": Field(32128, "vocab"),
    "d_model": Field(512, "embed"),
    "d_kv": Field(64, "attention.head_dim"),
    "d_ff": Field(2048),
    "num_layers": Field(6, "stack.num_layers"),
    "num_decoder_layers": Field(None, kind=int),
    "num_heads": Field(8, "attention.num_heads"),
    "relative_attention_num_buckets": Field(32, "bias.num_buckets"),
    "relative_attention_max_distance": Field(128, "bias.max_distance"),
    "layer_norm_epsilon": Field(1e-6, "norm.epsilon"),
    "initializer_factor": Field(1.0, "init.embedding_stddev"),
    "dropout_rate": Field(0.1, "stack.dropout_rate"),
    "decoder_start_token_id": Field(None, kind=int, least=0),
}
FIELDS: Fields = {
    **COMMON,
    "feed_forward_proj": Field("relu"),
    "classifier_dropout": Field(0.0),
}
MT5_FIELDS = fields.with_defaults(
    FIELDS, vocab_size=250112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu"
)


def mlp_spec(config: Config) -> MlpSpec:
    """Returns the MLP of a config: of `feed_forward_proj`, unless its two successors exist."""
    name = config["feed_forward_proj"]
    gated = config.get("is_gated_act", name.startswith("gated-"))
    activation = name.removeprefix("gated-")
    if name == "gated-gelu":  # named before there were two
        activation = "gelu_new"
    activation = config.get("dense_act_fn", activation)
    field = "dense_act_fn" if "dense_act_fn" in config else "feed_forward_proj's activation"
    return MlpSpec(config["d_ff"], activations.activation(activation, field), gated=gated)


def mlp_fields(spec: MlpSpec) -> dict[str, Any]:
    """Returns the config fields that `mlp_spec` reads."""
    activation = activations.activation_name(spec.activation)
    short = "gelu" if activation == "gelu_new" and spec.gated else activation
    return {
        "d_ff": spec.hidden,
        "feed_forward_proj": f"gated-{short}" if spec.gated else short,
        "dense_act_fn": activation,
        "is_gated_act": spec.gated,
    }


def model_parts(
    foreign: Foreign,
    mlps: Mapping[str, tuple[MlpSpec | MoeSpec, ...]],
    *,
    per_layer: bool,
    init_scale: float = 1.0,
) -> dict[str, Any]:
    """Returns ModelSpec's fields of a config.

    Args:
      mlps: of the repeating pattern of "encoder" and, if there is one, "decoder".
      per_layer: whether each layer has a table of biases.
      init_scale: that of `FanInInitSpec`.
    """
    config, norm = foreign.config, RMSNormSpec(**foreign.parts["norm"])
    attention = foreign.attention(logits_scale=1.0)
    bias = RelativeBiasSpec(**foreign.parts["bias"], per_layer=per_layer)
    depths = {"encoder": config["num_layers"], "decoder": num_decoder_layers(config)}
    stacks: dict[str, Any] = {
        side: StackSpec(
            depths[side],
            tuple(
                TransformerBlockSpec(
                    attention,
                    mlp,
                    norm=norm,
                    cross_attention=attention if side == "decoder" else None,
                )
                for mlp in pattern
            ),
            causal=side == "decoder",
            position_bias=bias,
            final_norm=norm,
            dropout_rate=config["dropout_rate"],
        )
        for side, pattern in mlps.items()
    }
    factor = float(config["initializer_factor"])
    return {
        **stacks,
        "start_id": config["decoder_start_token_id"] or 0,
        "init": FanInInitSpec(scale=init_scale * factor**2, embedding_stddev=factor),
    }


def num_decoder_layers(config: Config) -> int:
    """Returns the depth of the decoder, by default the encoder's."""
    depth = config["num_decoder_layers"]
    return config["num_layers"] if depth is None else depth


def sides(config: Config, family: Family) -> tuple[str, ...]:
    return ("encoder",) if family.suffix(config) in (ENCODER, TOKENS) else ("encoder", "decoder")


def is_tied(source: Source) -> bool:
    """Whether logits come from the token embedding, by the weights: configs err."""
    stored = source.tensors()
    tables = [name for name in ("shared.weight", *TABLES) if name in stored]
    if "lm_head.weight" not in stored:
        return True
    return bool(tables) and same_values(source, "lm_head.weight", tables[0])


def _lm_head(foreign: Foreign) -> tuple[HeadSpec, ...]:
    config, tied = foreign.config, is_tied(foreign.source)
    model_type, declared_tied = config["model_type"], config.get("tie_word_embeddings") is not False
    # transformers 4.57 looked at tie_word_embeddings; 5.23 overwrites it, and UMT5's logits were
    # then scaled that its training never did.
    scaled = config.get("scale_decoder_outputs", declared_tied and (tied or model_type == "t5"))
    scaled = scaled and model_type != "mt5"
    return (LMHeadSpec(tied=tied, logits_scale=None if scaled else 1.0),)


HEADS: dict[str, Heads] = {
    LM: _lm_head,
    BASE: no_heads,
    ENCODER: no_heads,
    TOKENS: labels.makers(lambda foreign: foreign.config["classifier_dropout"])[TOKENS],
}


def _spec_parts(foreign: Foreign) -> dict[str, Any]:
    config, model_type = foreign.config, foreign.config["model_type"]
    mlps = dict.fromkeys(sides(config, FAMILIES[model_type]), (mlp_spec(config),))
    return model_parts(foreign, mlps, per_layer=model_type == "umt5")


def extra(spec: ModelSpec, classes: str) -> dict[str, Any]:
    """Returns the config fields beside `COMMON` and the MLPs'; `classes`: architectures' prefix."""
    encoder, head = fields.stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    fields.expect(encoder.position_bias, RelativeBiasSpec, "position_bias")
    encoder_alone = spec.decoder is None and not isinstance(head, TokenLabelsHeadSpec)
    return {
        **({"architectures": [classes + ENCODER]} if encoder_alone else {}),
        "num_decoder_layers": (spec.decoder or encoder).num_layers,
        "classifier_dropout": getattr(head, "dropout_rate", 0.0),
        "tie_word_embeddings": not isinstance(head, LMHeadSpec) or head.tied,
        "is_encoder_decoder": spec.decoder is not None,
        "decoder_start_token_id": spec.start_id,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def _extra(spec: ModelSpec) -> dict[str, Any]:
    head = spec.heads[0] if spec.heads else None
    mlp = fields.expect(fields.stack_of(spec, "encoder").blocks[0].mlp, MlpSpec, "mlp")
    scaled = isinstance(head, LMHeadSpec) and head.logits_scale is None
    content = extra(spec, FAMILIES[spec.family].classes) | mlp_fields(mlp)
    return content | {"scale_decoder_outputs": scaled}


def names(mlps: Mapping[str, str]) -> dict[str, Any]:
    """Returns the names of the modules; `mlps`: an MLP's, by ours."""
    result: dict[str, Any] = {
        "token_embedding": "shared",
        "lm_head/projection": "lm_head",
        **labels.names(),
    }
    for side, number in (("encoder", 1), ("decoder", 2)):
        layer = {
            **modules.attention("0.SelfAttention.{}", ("q", "k", "v", "o")),
            **modules.attention("1.EncDecAttention.{}", ("q", "k", "v", "o"), "cross_attention"),
            "attention_norm": "0.layer_norm",
            "cross_attention_norm": "1.layer_norm",
            "mlp_norm": f"{number}.layer_norm",
            "position_bias": BIAS,
            **{f"mlp/{ours}": f"{number}.{theirs}" for ours, theirs in mlps.items()},
        }
        result |= modules.layers(side, f"{side}.block.{{}}.layer", layer)
        # Where all layers use one table, the first layer's module has it.
        result[f"{side}/position_bias"] = f"{side}.block.0.layer.{BIAS}"
        result[f"{side}/final_norm"] = f"{side}.final_layer_norm"
    return result


def tensors(spec: ModelSpec, mlps: Mapping[str, str]) -> list[Tensor]:
    if not any(isinstance(head, TokenLabelsHeadSpec) for head in spec.heads):
        tied = {"shared.weight": ("lm_head.weight",)}
        return modules.tensors_of(spec, names(mlps), aliases={"shared.weight": TABLES}, tied=tied)
    # T5ForTokenClassification alone has a prefix.
    named = {
        path: name if path.endswith("head/projection") else f"transformer.{name}"
        for path, name in names(mlps).items()
    }
    tables = tuple(f"transformer.{name}" for name in TABLES)
    return modules.tensors_of(spec, named, aliases={"transformer.shared.weight": tables})


def _tensors(spec: ModelSpec) -> list[Tensor]:
    mlp, wo = fields.stack_of(spec, "encoder").blocks[0].mlp, "DenseReluDense.wo"
    up = "wi_1" if getattr(mlp, "gated", False) else "wi"
    gated = {"gate": "DenseReluDense.wi_0", "up": f"DenseReluDense.{up}", "down": wo}
    return tensors(spec, gated)


# Released T5 files hold a bias of cross-attention that nothing reads.
IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
FAMILIES = {
    name: Family(
        classes,
        table,
        HEADS,
        _spec_parts,
        _extra,
        _tensors,
        lm=LM,
        side="encoder",
        also="T5",  # under which UMT5's were saved before it was known by its own name
        ignored=IGNORED,
    )
    for name, classes, table in (
        ("t5", "T5", FIELDS),
        ("mt5", "MT5", MT5_FIELDS),
        ("umt5", "UMT5", MT5_FIELDS),
    )
}
