"""T5, mT5 and UMT5; ByT5, FLAN-T5 and the LM-adapted T5 are T5 by their configs."""

from collections.abc import Callable, Mapping
from typing import Any

from t5lite.interop.huggingface.families import activations, family, labels, modules
from t5lite.interop.tensors import Part, Source, Tensor, same_values, transposed
from t5lite.layers import (
    AttentionSpec,
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

NAMES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
LM, BASE, ENCODER = "ForConditionalGeneration", "Model", "EncoderModel"
TOKENS = labels.SUFFIXES[TokenLabelsHeadSpec]
MlpTensors = Callable[..., list[Tensor]]
# What transformers' config classes fill in.
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "feed_forward_proj": "relu",
    },
    "mt5": {
        "vocab_size": 250112,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
}
DEFAULTS["umt5"] = DEFAULTS["mt5"]


def mlp_spec(config: family.Config) -> MlpSpec:
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


def stacks(
    config: family.Config, mlps: Mapping[str, tuple[MlpSpec | MoeSpec, ...]], *, per_layer: bool
) -> dict[str, StackSpec]:
    """Returns the stacks of a config.

    Args:
      config: with the defaults filled in.
      mlps: those of the repeating pattern of "encoder" and, if there is one, "decoder".
      per_layer: whether each layer has a table of biases.
    """
    attention = AttentionSpec(config["num_heads"], config["d_kv"], logits_scale=1.0)
    norm = RMSNormSpec(config.get("layer_norm_epsilon", 1e-6))
    bias = RelativeBiasSpec(
        config.get("relative_attention_num_buckets", 32),
        config.get("relative_attention_max_distance", 128),
        per_layer=per_layer,
    )
    depths = {"encoder": config["num_layers"], "decoder": num_decoder_layers(config)}
    return {
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
            dropout_rate=config.get("dropout_rate", 0.1),
        )
        for side, pattern in mlps.items()
    }


def num_decoder_layers(config: family.Config) -> int:
    """Returns the depth of the decoder: the encoder's unless the config says otherwise."""
    depth = config.get("num_decoder_layers")
    return config["num_layers"] if depth is None else depth


def is_tied(source: Source) -> bool:
    """Returns whether logits come from the token embedding: the weights say so, configs err."""
    stored = source.tensors()
    tables = [name for name in ("shared.weight", *_aliases(None)) if name in stored]
    if "lm_head.weight" not in stored:
        return True
    return bool(tables) and same_values(source, "lm_head.weight", tables[0])


def lm_head(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    """Returns the head of the architecture with logits."""
    tied, model_type = is_tied(source), config["model_type"]
    declared_tied = config.get("tie_word_embeddings") is not False
    # transformers 4.57 looked at tie_word_embeddings; 5.23 overwrites it, and UMT5's logits were
    # then scaled that its training never did.
    scaled = config.get("scale_decoder_outputs", declared_tied and (tied or model_type == "t5"))
    scaled = scaled and model_type != "mt5"
    return (LMHeadSpec(tied=tied, logits_scale=None if scaled else 1.0),)


HEADS: dict[str, family.Heads] = {
    LM: lm_head,
    BASE: family.no_heads,
    ENCODER: family.no_heads,
    TOKENS: lambda config, _: (
        labels.token_head(config, dropout_rate=config.get("classifier_dropout", 0.0)),
    ),
}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    model_type = config["model_type"]
    config = {**DEFAULTS[model_type], **config}
    # UMT5's were saved under T5's name before it was known by its own.
    suffix = family.suffix_of(NAMES[model_type], HEADS, config, also="T5")
    mlp = mlp_spec(config)
    sides = ("encoder",) if suffix in (ENCODER, TOKENS) else ("encoder", "decoder")
    return model_spec(
        config,
        heads=HEADS[suffix](config, source),
        **stacks(config, dict.fromkeys(sides, (mlp,)), per_layer=model_type == "umt5"),
    )


def model_spec(config: family.Config, init_scale: float = 1.0, /, **parts: Any) -> ModelSpec:
    """Returns a model of these heads and stacks; `init_scale` is that of `FanInInitSpec`."""
    factor = float(config.get("initializer_factor", 1.0))
    return ModelSpec(
        family=config["model_type"],
        vocab=config["vocab_size"],
        embed=config["d_model"],
        start_id=config.get("decoder_start_token_id") or 0,
        init=FanInInitSpec(scale=init_scale * factor**2, embedding_stddev=factor),
        **parts,
    )


def _suffix(spec: ModelSpec) -> str:
    """Returns the end of the name of a model's architecture."""
    if any(isinstance(head, TokenLabelsHeadSpec) for head in spec.heads):
        return TOKENS
    if spec.decoder is None:
        return ENCODER
    return LM if spec.heads else BASE


def fields(spec: ModelSpec, name: str) -> dict[str, Any]:
    """Returns a config but for what its MLPs are; `name` is that of the family's classes."""
    encoder, head = family.stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    attention = encoder.blocks[0].attention
    bias = family.expect(encoder.position_bias, RelativeBiasSpec, "position_bias")
    return {
        "architectures": [f"{name}{_suffix(spec)}"],
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "d_model": spec.embed,
        "d_kv": attention.head_dim,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": (spec.decoder or encoder).num_layers,
        "num_heads": attention.num_heads,
        "relative_attention_num_buckets": bias.num_buckets,
        "relative_attention_max_distance": bias.max_distance,
        "layer_norm_epsilon": getattr(encoder.blocks[0].norm, "epsilon", 1e-6),
        "initializer_factor": getattr(spec.init, "embedding_stddev", 1.0),
        "dropout_rate": encoder.dropout_rate,
        "classifier_dropout": getattr(head, "dropout_rate", 0.0),
        "tie_word_embeddings": not isinstance(head, LMHeadSpec) or head.tied,
        "is_encoder_decoder": spec.decoder is not None,
        "decoder_start_token_id": spec.start_id,
        "pad_token_id": 0,
        "eos_token_id": 1,
        **(labels.fields(head) if head is not None else {}),
    }


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    content, head = fields(spec, NAMES[spec.family]), spec.heads[0] if spec.heads else None
    mlp = family.expect(family.stack_of(spec, "encoder").blocks[0].mlp, MlpSpec, "mlp")
    scaled = isinstance(head, LMHeadSpec) and head.logits_scale is None
    return content | mlp_fields(mlp) | {"scale_decoder_outputs": scaled}


def mlp(
    name: str, path: str, spec: MlpSpec | MoeSpec, embed: int, *, layer: int | None
) -> list[Tensor]:
    """Returns the tensors of an MLP, gated or not."""
    spec = family.expect(spec, MlpSpec, "mlp")
    up = f"{name}.wi_1" if spec.gated else f"{name}.wi"
    names = {"gate": f"{name}.wi_0", "up": up, "down": f"{name}.wo"}
    return modules.mlp(names, path, spec, embed, layer=layer)


def tensors(
    spec: ModelSpec, mlp: MlpTensors = mlp, mlp_name: str = "DenseReluDense"
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
    for side in ("encoder", "decoder"):
        stack = getattr(spec, side)
        if stack is None:
            continue
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
    spec, result = family.expect(stack.position_bias, RelativeBiasSpec, "position_bias"), []
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
FAMILIES = {
    name: family.Family(
        spec,
        config,
        tensors,
        NAMES[name],
        # Released T5 files hold a bias of cross-attention that nothing reads.
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )
    for name in NAMES
}
