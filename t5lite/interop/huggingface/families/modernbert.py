"""ModernBERT: rotary positions of two bases, windows in two layers of three, gated MLPs."""

from typing import Any

from t5lite.interop.huggingface.families import family, modules
from t5lite.interop.huggingface.families.activations import activation, activation_name
from t5lite.interop.huggingface.families.layer_types import FULL, SLIDING, layer_types, period
from t5lite.interop.tensors import Part, Source, Tensor, View
from t5lite.layers import (
    AttentionSpec,
    HeadSpec,
    LayerNormSpec,
    MaskedLMHeadSpec,
    MlpSpec,
    RotarySpec,
    TruncatedNormalInitSpec,
)
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec

CLASSES = "ModernBert"
_THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}
_OLD_THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}


def spec(config: family.Config, source: Source) -> ModelSpec:
    """Returns the spec of a config; see `Family`."""
    embed, num_heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    num_layers = config.get("num_hidden_layers", 22)
    norm = _norm(config)
    mlp = MlpSpec(
        config.get("intermediate_size", 1152),
        activation(config.get("hidden_activation", "gelu"), "hidden_activation"),
        gated=True,
        use_bias=config.get("mlp_bias", False),
    )

    def block(kind: str, **options: Any) -> TransformerBlockSpec:
        attention = AttentionSpec(
            num_heads,
            embed // num_heads,
            use_bias=config.get("attention_bias", False),
            rotary=RotarySpec(_theta(config, kind)),
            window=config.get("local_attention", 128) // 2 if kind == SLIDING else None,
        )
        return TransformerBlockSpec(attention, mlp, norm=norm, **options)

    every = config.get("global_attn_every_n_layers", 3)
    kinds = layer_types(config, [SLIDING if n % every else FULL for n in range(num_layers)])
    # The embeddings' norm is all that the first layer's attention needs.
    encoder = StackSpec(
        num_layers,
        tuple(block(kind) for kind in period(kinds[1:])),
        causal=False,
        first_blocks=(block(kinds[0], attention_norm=False),),
        embedding_norm=norm,
        final_norm=norm,
        dropout_rate=float(config.get("mlp_dropout", 0.0)),
    )
    return ModelSpec(
        family="modernbert",
        vocab=config.get("vocab_size", 50368),
        embed=embed,
        encoder=encoder,
        heads=family.heads_of(CLASSES, HEADS, config, source),
        init=TruncatedNormalInitSpec(config.get("initializer_range", 0.02), scaled_residuals=True),
    )


def _masked_lm(config: family.Config, source: Source) -> tuple[HeadSpec, ...]:
    del source
    family.check_fields(config, tie_word_embeddings=(True,), decoder_bias=(True,))
    name = activation(config.get("classifier_activation", "gelu"), "classifier_activation")
    return (MaskedLMHeadSpec(name, _norm(config), use_bias=config.get("classifier_bias", False)),)


HEADS: dict[str, family.Heads] = {"ForMaskedLM": _masked_lm, "Model": family.no_heads}


def _norm(config: family.Config) -> LayerNormSpec:
    return LayerNormSpec(config.get("norm_eps", 1e-5), use_bias=config.get("norm_bias", False))


def _theta(config: family.Config, kind: str) -> float:
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = parameters.get("rope_type", "default")
    if scaling != "default" or config.get("rope_scaling"):
        raise family.unsupported(f"rope_parameters[{kind!r}]: rope_type", scaling, ["default"])
    theta = parameters.get("rope_theta") or config.get(_OLD_THETAS[kind]) or _THETAS[kind]
    return float(theta)


def config(spec: ModelSpec) -> dict[str, Any]:
    """Returns the config of a spec; see `Family`."""
    encoder, head = family.stack_of(spec, "encoder"), spec.heads[0] if spec.heads else None
    blocks = encoder.every_block
    block, kinds = blocks[0], [SLIDING if b.attention.window else FULL for b in blocks]
    mlp = family.expect(block.mlp, MlpSpec, "mlp")
    norm = family.expect(block.norm, LayerNormSpec, "norm")
    thetas, windows = dict(_THETAS), [b.attention.window for b in blocks if b.attention.window]
    for kind, layer_block in zip(kinds, blocks, strict=True):
        thetas[kind] = family.expect(layer_block.attention.rotary, RotarySpec, "rotary").theta
    content = {
        "architectures": [
            CLASSES + ("ForMaskedLM" if isinstance(head, MaskedLMHeadSpec) else "Model")
        ],
        "model_type": "modernbert",
        "vocab_size": spec.vocab,
        "hidden_size": spec.embed,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "hidden_activation": activation_name(mlp.activation),
        "norm_eps": norm.epsilon,
        "norm_bias": norm.use_bias,
        "attention_bias": block.attention.use_bias,
        "mlp_bias": mlp.use_bias,
        "mlp_dropout": encoder.dropout_rate,
        "layer_types": kinds,
        "local_attention": 2 * windows[0] if windows else 128,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        "initializer_range": family.initial_stddev(spec),
        # Version 4 reads these instead.
        "global_rope_theta": thetas[FULL],
        "local_rope_theta": thetas[SLIDING],
    }
    tokens = {"pad": 50283, "bos": 50281, "eos": 50282, "cls": 50281, "sep": 50282}
    for name, token in tokens.items():
        content[f"{name}_token_id"] = token if token < spec.vocab else 0
    if isinstance(head, MaskedLMHeadSpec):
        content["classifier_activation"] = activation_name(head.activation)
        content["classifier_bias"] = head.use_bias
    return content


def tensors(spec: ModelSpec) -> list[Tensor]:
    """Returns the tensors of a spec; see `Family`."""
    encoder, embed = family.stack_of(spec, "encoder"), spec.embed
    head = spec.heads[0] if spec.heads else None
    aliases = ("decoder.weight",) if head is not None else ()
    name = "model.embeddings.tok_embeddings.weight"
    result = modules.table(name, "token_embedding", spec.vocab, embed, aliases=aliases)
    norm = family.expect(encoder.embedding_norm, LayerNormSpec, "embedding_norm")
    result += modules.norm("model.embeddings.norm", "encoder/embedding_norm", norm, embed)
    names = {
        "attention_norm": "attn_norm",
        "mlp_norm": "mlp_norm",
        "attention": {"fused": "attn.Wqkv", "output": "attn.Wo"},
        "mlp": "mlp",
    }
    result += modules.stack_tensors(
        encoder,
        "encoder",
        embed,
        "model.layers.{}".format,
        names,
        attention=modules.fused_attention,
        mlp=_fused_mlp,
        final_norm="model.final_norm",
    )
    if isinstance(head, MaskedLMHeadSpec):
        result += modules.linear(
            "head.dense", "lm_head/dense", embed, embed, use_bias=head.use_bias
        )
        result += modules.norm("head.norm", "lm_head/norm", head.norm, embed)
        result.append(modules.vector("decoder.bias", "lm_head/bias", spec.vocab))
    return result


def _fused_mlp(name: str, path: str, spec: Any, embed: int, *, layer: int | None) -> list[Tensor]:
    """Returns a gated MLP whose `Wi` has the gate's rows, then those of what it gates."""
    hidden = family.expect(spec, MlpSpec, "mlp").hidden

    def half(part: int) -> View:
        return lambda array: array[part * hidden : (part + 1) * hidden].T

    order = ("gate", "up")
    kernels = [Part(f"{path}/{part}/kernel", layer, half(n)) for n, part in enumerate(order)]
    result = [Tensor(f"{name}.Wi.weight", (2 * hidden, embed), tuple(kernels))]
    if spec.use_bias:
        biases = [Part(f"{path}/{part}/bias", layer, half(n)) for n, part in enumerate(order)]
        result.append(Tensor(f"{name}.Wi.bias", (2 * hidden,), tuple(biases)))
    down = (f"{name}.Wo", f"{path}/down", hidden, embed)
    return result + modules.linear(*down, use_bias=spec.use_bias, layer=layer)


FAMILIES = {"modernbert": family.Family(spec, config, tensors, CLASSES, prefix="model.")}
