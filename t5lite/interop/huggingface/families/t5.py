"""T5, mT5 and UMT5; ByT5, FLAN-T5 and the LM-adapted T5 are T5 by their configs."""

from collections.abc import Callable, Mapping
from typing import Any

from t5lite.interop.huggingface.families import activations, labels, modules
from t5lite.interop.huggingface.families.family import Family, no_heads
from t5lite.interop.huggingface.families.fields import (
    Config,
    Field,
    Fields,
    Foreign,
    Heads,
    expect,
    stack_of,
)
from t5lite.interop.tensors import Part, Source, Tensor, same_values, transposed
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
MlpTensors = Callable[..., list[Tensor]]
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
MT5_FIELDS: Fields = {
    **FIELDS,
    "vocab_size": Field(250112, "vocab"),
    "d_ff": Field(1024),
    "num_layers": Field(8, "stack.num_layers"),
    "num_heads": Field(6, "attention.num_heads"),
    "feed_forward_proj": Field("gated-gelu"),
}


def mlp_spec(config: Config) -> MlpSpec:
    """Returns the MLP of a config: `feed_forward_proj`, unless its two successors are there."""
    name = config["feed_forward_proj"]
    gated = config.get("is_gated_act", name.startswith("gated-"))
    activation = name.removeprefix("gated-")
    if name == "gated-gelu":  # named before there were two
        activation = "gelu_new"
    activation = config.get("dense_act_fn", activation)
    field = "dense_act_fn" if "dense_act_fn" in config else "feed_forward_proj's activation"
    return MlpSpec(config["d_ff"], activations.activation(activation, field), gated=gated)


def mlp_fields(spec: MlpSpec) -> dict[str, Any]:
    """Returns the fields of a config that `mlp_spec` reads."""
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
      foreign: the config.
      mlps: those of the repeating pattern of "encoder" and, if there is one, "decoder".
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
    """Returns the depth of the decoder: the encoder's unless the config says otherwise."""
    depth = config["num_decoder_layers"]
    return config["num_layers"] if depth is None else depth


def sides(config: Config, family: Family) -> tuple[str, ...]:
    """Returns the stacks of a config's architecture."""
    alone = family.suffix(config) in (ENCODER, TOKENS)
    return ("encoder",) if alone else ("encoder", "decoder")


def is_tied(source: Source) -> bool:
    """Returns whether logits come from the token embedding: the weights say so, configs err."""
    stored = source.tensors()
    tables = [name for name in ("shared.weight", *_aliases(None)) if name in stored]
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


def fields(spec: ModelSpec, classes: str) -> dict[str, Any]:
    """Returns the fields of a config beside `COMMON`, but for its MLPs.

    Args:
      spec: of the model.
      classes: what its architectures begin with.
    """
    encoder, head = stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    expect(encoder.position_bias, RelativeBiasSpec, "position_bias")
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
    mlp = expect(stack_of(spec, "encoder").blocks[0].mlp, MlpSpec, "mlp")
    scaled = isinstance(head, LMHeadSpec) and head.logits_scale is None
    content = fields(spec, FAMILIES[spec.family].classes) | mlp_fields(mlp)
    return content | {"scale_decoder_outputs": scaled}


def _mlp(
    name: str, path: str, spec: MlpSpec | MoeSpec, embed: int, *, layer: int | None
) -> list[Tensor]:
    """Returns the tensors of an MLP, gated or not."""
    spec = expect(spec, MlpSpec, "mlp")
    up = f"{name}.wi_1" if spec.gated else f"{name}.wi"
    names = {"gate": f"{name}.wi_0", "up": up, "down": f"{name}.wo"}
    return modules.mlp(names, path, spec, embed, layer=layer)


def tensors(
    spec: ModelSpec, mlp: MlpTensors = _mlp, mlp_name: str = "DenseReluDense"
) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`. Switch has another MLP of another name."""
    head = spec.heads[0] if spec.heads else None
    tokens = isinstance(head, TokenLabelsHeadSpec)
    prefix = "transformer." if tokens else ""
    result = modules.table(
        f"{prefix}shared.weight",
        "token_embedding",
        spec.vocab,
        spec.embed,
        aliases=tuple(f"{prefix}{name}" for name in _aliases(head)),
    )
    for side in ("encoder", "decoder") if spec.decoder is not None else ("encoder",):
        stack = stack_of(spec, side)
        layer_name = f"{prefix}{side}.block.{{}}.layer".format
        names, last = dict(_ATTENTIONS[side]), len(_ATTENTIONS[side]) // 2
        names |= {"mlp": f"{last}.{mlp_name}", "mlp_norm": f"{last}.layer_norm"}
        norm = f"{prefix}{side}.final_layer_norm"
        result += modules.stack_tensors(
            stack, side, spec.embed, layer_name, names, mlp=mlp, final_norm=norm
        )
        result += _bias_tensors(layer_name, stack, side)
    result += modules.lm_head(spec, "lm_head.weight")
    return result + (labels.tensors(head, spec.embed) if head is not None else [])


def _aliases(head: HeadSpec | None) -> tuple[str, ...]:
    """Returns the other names of the token embedding."""
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return (*names, "lm_head.weight") if isinstance(head, LMHeadSpec) and head.tied else names


def _bias_tensors(layer_name: Callable[[int], str], stack: StackSpec, side: str) -> list[Tensor]:
    """Returns the tables of biases: of each layer, or of the first one alone, which all use."""
    spec, result = expect(stack.position_bias, RelativeBiasSpec, "position_bias"), []
    shape = (spec.num_buckets, stack.blocks[0].attention.num_heads)
    for layer in range(stack.num_layers if spec.per_layer else 1):
        place, index = stack.place(layer)
        path, index = (f"{side}/{place}", index) if spec.per_layer else (side, None)
        part = Part(f"{path}/position_bias/embedding", index, transposed)
        name = f"{layer_name(layer)}.0.SelfAttention.relative_attention_bias.weight"
        result.append(Tensor(name, shape, (part,)))
    return result


def _attention(number: int, module: str) -> dict[str, str]:
    parts = ("query", "key", "value", "output")
    return {part: f"{number}.{module}.{letter}" for part, letter in zip(parts, "qkvo", strict=True)}


# The names of a layer's modules but for the MLP's.
_ATTENTIONS: dict[str, dict[str, Any]] = {
    "encoder": {"attention": _attention(0, "SelfAttention"), "attention_norm": "0.layer_norm"}
}
_ATTENTIONS["decoder"] = _ATTENTIONS["encoder"] | {
    "cross_attention": _attention(1, "EncDecAttention"),
    "cross_attention_norm": "1.layer_norm",
}
# Released T5 files hold a bias of cross-attention that nothing reads.
IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
FAMILIES = {
    name: Family(
        classes,
        fields_of_class,
        HEADS,
        _spec_parts,
        _extra,
        tensors,
        lm=LM,
        side="encoder",
        also="T5",  # under which UMT5's were saved before it was known by its own name
        ignored=IGNORED,
    )
    for name, classes, fields_of_class in (
        ("t5", "T5", FIELDS),
        ("mt5", "MT5", MT5_FIELDS),
        ("umt5", "UMT5", MT5_FIELDS),
    )
}
