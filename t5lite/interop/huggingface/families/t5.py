"""T5, mT5 and UMT5; ByT5, FLAN-T5 and the LM-adapted T5 are T5 by their configs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5lite.errors import InputError
from t5lite.interop.huggingface.families import activations, labels, modules
from t5lite.interop.huggingface.families.family import Config, Family, Unsupported
from t5lite.interop.tensors import Part, Source, Tensor, transposed
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
MlpTensors = Callable[[str, str, MlpSpec | MoeSpec, int, int | None], list[Tensor]]
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


def stacks(
    config: Config, mlps: Mapping[str, tuple[MlpSpec | MoeSpec, ...]], *, per_layer: bool
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


def num_decoder_layers(config: Config) -> int:
    """Returns the depth of the decoder: the encoder's unless the config says otherwise."""
    given = config.get("num_decoder_layers")
    return config["num_layers"] if given is None else given


def is_tied(source: Source) -> bool:
    """Returns whether logits come from the token embedding: the weights say so, configs err."""
    there = source.tensors()
    if "lm_head.weight" not in there:
        return True
    names = [name for name in ("shared.weight", *_aliases(None)) if name in there]
    head = source.read("lm_head.weight")
    if not names or there[names[0]].shape != head.shape:
        return False
    table, step = source.read(names[0]), 4096  # rows at a time: most differ at once
    return all(
        np.array_equal(head[row : row + step], table[row : row + step])
        for row in range(0, len(head), step)
    )


def architecture(config: Config, name: str, known: tuple[str, ...]) -> str:
    """Returns the end of the architecture's name: one of `known`, the first if none is said.

    Raises:
      InputError: for another architecture.
    """
    names = config.get("architectures") or [f"{name}{known[0]}"]
    for suffix in known:
        # UMT5's were saved under T5's name before it was known by its own.
        if names in ([f"{name}{suffix}"], [f"T5{suffix}"]):
            return suffix
    modelled = ", ".join(f"{name}{suffix}" for suffix in known)
    raise InputError(f"architectures = {names!r} is not modelled; those that are: {modelled}")


def heads(config: Config, source: Source, suffix: str) -> tuple[HeadSpec, ...]:
    """Returns the heads of an architecture."""
    if suffix == TOKENS:
        return (labels.token_head(config, dropout_rate=config.get("classifier_dropout", 0.0)),)
    if suffix != LM:
        return ()
    tied, model_type = is_tied(source), config["model_type"]
    said = config.get("tie_word_embeddings") is not False
    # transformers 4.57 looked at tie_word_embeddings; 5.23 overwrites it, and UMT5's logits were
    # then scaled that its training never did.
    scaled = config.get("scale_decoder_outputs", said and (tied or model_type == "t5"))
    scaled = scaled and model_type != "mt5"
    return (LMHeadSpec(tied=tied, logits_scale=None if scaled else 1.0),)


def spec(config: Config, source: Source, *, model_type: str) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    config = {**DEFAULTS[model_type], **config, "model_type": model_type}
    suffix = architecture(config, NAMES[model_type], (LM, BASE, ENCODER, TOKENS))
    mlp = mlp_spec(config)
    sides = ("encoder",) if suffix in (ENCODER, TOKENS) else ("encoder", "decoder")
    return model_spec(
        config,
        heads=heads(config, source, suffix),
        **stacks(config, dict.fromkeys(sides, (mlp,)), per_layer=model_type == "umt5"),
    )


def model_spec(config: Config, init_scale: float = 1.0, /, **parts: Any) -> ModelSpec:
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


def suffix_of(spec: ModelSpec) -> str:
    """Returns the end of the name of a model's architecture."""
    if spec.encoder is None:
        raise InputError(f"family = {spec.family!r} has no models that are a decoder alone")
    if any(isinstance(head, TokenLabelsHeadSpec) for head in spec.heads):
        return TOKENS
    if spec.decoder is None:
        return ENCODER
    return LM if spec.heads else BASE


def fields(spec: ModelSpec, name: str) -> dict[str, Any]:
    """Returns a config but for what its MLPs are; `name` is that of the family's classes."""
    encoder, head = spec.encoder, spec.heads[0] if spec.heads else None
    suffix = suffix_of(spec)
    assert encoder is not None
    attention, bias = encoder.blocks[0].attention, encoder.position_bias
    if not isinstance(bias, RelativeBiasSpec):
        raise InputError(f"position_bias = {bias!r}: family {spec.family!r} has a RelativeBiasSpec")
    return {
        "architectures": [f"{name}{suffix}"],
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
    found = fields(spec, NAMES[spec.family])
    assert spec.encoder is not None
    mlp, head = spec.encoder.blocks[0].mlp, spec.heads[0] if spec.heads else None
    if not isinstance(mlp, MlpSpec):
        raise InputError(f"family = {spec.family!r} has no experts; switch_transformers has")
    scaled = isinstance(head, LMHeadSpec) and head.logits_scale is None
    return found | mlp_fields(mlp) | {"scale_decoder_outputs": scaled}


def mlp_tensors(
    name: str, path: str, spec: MlpSpec | MoeSpec, embed: int, layer: int | None
) -> list[Tensor]:
    """Returns the tensors of a layer's last sublayer but for its norm.

    Args:
      name: of the sublayer.
      path: of our MLP.
      spec: of it.
      embed: width of the residual stream.
      layer: see `Part`.
    """
    if not isinstance(spec, MlpSpec):
        raise Unsupported("mlp", spec)
    name = f"{name}.DenseReluDense"
    up = f"{name}.wi_1" if spec.gated else f"{name}.wi"
    names = {"gate": f"{name}.wi_0", "up": up, "down": f"{name}.wo"}
    return modules.mlp(names, path, spec, embed, layer=layer)


def tensors(spec: ModelSpec, mlp_tensors: MlpTensors = mlp_tensors) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`, and `mlp_tensors` for what Switch has others."""
    head = spec.heads[0] if spec.heads else None
    tokens = isinstance(head, TokenLabelsHeadSpec)
    prefix = "transformer." if tokens else ""
    found = modules.table(
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
        found += _stack_tensors(stack, side, spec.embed, prefix=prefix, mlp_tensors=mlp_tensors)
        name = f"{prefix}{side}.final_layer_norm"
        found += modules.norm(name, f"{side}/final_norm", stack.final_norm, spec.embed)
    if isinstance(head, LMHeadSpec) and not head.tied:
        kernel = Part("lm_head/projection/kernel", None, transposed)
        found.append(Tensor("lm_head.weight", (spec.vocab, spec.embed), (kernel,)))
    return found + (labels.tensors(head, spec.embed) if head is not None else [])


def _aliases(head: HeadSpec | None) -> tuple[str, ...]:
    """Returns the other names of the token embedding."""
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    return (*names, "lm_head.weight") if isinstance(head, LMHeadSpec) and head.tied else names


def _stack_tensors(
    stack: StackSpec, side: str, embed: int, *, prefix: str, mlp_tensors: MlpTensors
) -> list[Tensor]:
    """Returns the tensors of a stack's layers and biases."""
    found: list[Tensor] = []
    for layer, block in enumerate(stack.every_block):
        place, index = stack.place(layer)
        name, path = f"{prefix}{side}.block.{layer}.layer", f"{side}/{place}"
        sublayers = [("SelfAttention", "attention", block.attention)]
        if block.cross_attention is not None:
            sublayers.append(("EncDecAttention", "cross_attention", block.cross_attention))
        for number, (module, ours, attention) in enumerate(sublayers):
            found += _attention_tensors(
                f"{name}.{number}.{module}", f"{path}/{ours}", attention, embed, index
            )
            norm = (f"{name}.{number}.layer_norm", f"{path}/{ours}_norm", block.norm, embed)
            found += modules.norm(*norm, layer=index)
        below = f"{name}.{len(sublayers)}"
        found += mlp_tensors(below, f"{path}/mlp", block.mlp, embed, index)
        norm = (f"{below}.layer_norm", f"{path}/mlp_norm", block.norm, embed)
        found += modules.norm(*norm, layer=index)
        found += _bias_tensors(f"{name}.0.SelfAttention", stack, side, layer)
    return found


def _attention_tensors(
    name: str, path: str, spec: AttentionSpec, embed: int, layer: int | None
) -> list[Tensor]:
    parts = ("query", "key", "value", "output")
    names = {part: f"{name}.{letter}" for part, letter in zip(parts, "qkvo", strict=True)}
    return modules.attention(names, path, spec, embed, layer=layer)


def _bias_tensors(name: str, stack: StackSpec, side: str, layer: int) -> list[Tensor]:
    """Returns the table of a layer's biases, if it has one: otherwise the first one's is used."""
    spec, (place, index) = stack.position_bias, stack.place(layer)
    if not isinstance(spec, RelativeBiasSpec):
        raise Unsupported("position_bias", spec)
    if not spec.per_layer and layer:
        return []
    path, index = (f"{side}/{place}", index) if spec.per_layer else (side, None)
    shape = (spec.num_buckets, stack.blocks[0].attention.num_heads)
    part = Part(f"{path}/position_bias/embedding", index, transposed)
    return [Tensor(f"{name}.relative_attention_bias.weight", shape, (part,))]


FAMILIES = {
    name: Family(
        functools.partial(spec, model_type=name),
        config,
        tensors,
        # Released T5 files hold a bias of cross-attention that nothing reads.
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )
    for name in NAMES
}
