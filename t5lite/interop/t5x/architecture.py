"""T5X's models, inferred from the names and shapes in a checkpoint."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.errors import InputError
from t5lite.layers import AttentionSpec, LMHeadSpec, MlpSpec, RelativeBiasSpec
from t5lite.models import ModelSpec, StackSpec, TransformerBlockSpec, differences

# Fields that T5X can be configured to and its checkpoints do not store: any value will do.
_UNSTORED = re.compile(
    r"family|\w+\.(dropout_rate|stochastic_depth_rate)"
    r"|\w+\.position_bias\.(max_distance|num_buckets)|\w+\.blocks\.\d+\.mlp\.activation"
)
_SELF_ATTENTION = {"encoder": "attention", "decoder": "self_attention"}


class Form(NamedTuple):
    """The layout of T5X's parameters; the models are the same.

    Args:
      scanned: layers in one array, along its second axis (`scalable_t5`).
      joined: heads and their width as one axis `joined_kv` (`t5`); else two (`scalable_t5`).
    """

    scanned: bool
    joined: bool


def form_of(scanned: bool, joined: bool | None = None) -> Form:
    """Returns a form; `joined` None as in T5X's own code: where layers are not scanned."""
    return Form(scanned, not scanned if joined is None else joined)


def check(spec: ModelSpec) -> None:
    """Raises an InputError with the reason if T5X has no such model."""
    if spec.encoder is not None and spec.decoder is None:
        raise InputError(
            "ModelSpec.decoder = None: T5X has no models that are an encoder alone",
            field="ModelSpec.decoder",
        )
    for name in ("encoder", "decoder"):
        stack = getattr(spec, name)
        if stack is None:
            continue
        bias_of(name, stack)
        mlp_of(name, stack)
        if any(block != stack.blocks[0] for block in stack.blocks):
            field = f"ModelSpec.{name}.blocks"
            raise InputError(f"{field} differ: in T5X all layers of a stack are alike", field=field)
    for change in differences(_t5x_model_like(spec), spec):
        if not _UNSTORED.fullmatch(change.path):
            field = f"ModelSpec.{change.path}"
            raise InputError(f"{field} = {change.new}: T5X's models have {change.old}", field=field)


def bias_of(name: str, stack: StackSpec) -> RelativeBiasSpec:
    bias = stack.position_bias
    if type(bias) is RelativeBiasSpec:
        return bias
    field = f"ModelSpec.{name}.position_bias"
    raise InputError(
        f"{field} = {bias!r}: T5X has models with a RelativeBiasSpec alone", field=field
    )


def mlp_of(name: str, stack: StackSpec) -> MlpSpec:
    mlp = stack.blocks[0].mlp
    if type(mlp) is MlpSpec:
        return mlp
    field = f"ModelSpec.{name}.blocks.0.mlp"
    raise InputError(
        f"{field} = {mlp!r}: T5X's own models have an MlpSpec, no experts (those of its "
        "contrib/moe are Flaxformer's)",
        field=field,
    )


def infer_spec(shapes: Mapping[str, Any]) -> ModelSpec:
    """Returns the model whose parameters have these names and shapes.

    Other fields are as published: an MLP of one matrix is ReLU (v1.0), a gated one has the
    tanh-approximated GELU (v1.1, mT5, ByT5, LM-adapted); distances beyond 128 share a bucket;
    dropout is that of pre-training, 0.1 with logits from the embedding (v1.0), otherwise 0.

    Args:
      shapes: name → anything with `shape`, of `target.…`; other names are ignored.

    Raises: InputError for anything but a T5's encoder-decoder or decoder.
    """
    stacks = _stacks(shapes)
    vocab, embed = _shape(
        shapes,
        "target.token_embedder.embedding",
        *(["target.decoder.token_embedder.embedding"] if stacks == ["decoder"] else []),
    )
    tied = "target.decoder.logits_dense.kernel" not in shapes
    sizes = {
        name: _stack(shapes, name, tied=tied, crossed=name == "decoder" and len(stacks) == 2)
        for name in stacks
    }
    return _model(vocab, embed, tied=tied, **sizes)


def infer_form(shapes: Mapping[str, Any]) -> Form:
    """Returns the layout of these parameters; `shapes` as in `infer_spec`."""
    scanned = _is_scanned(shapes, _stacks(shapes)[-1])
    query = _shape(shapes, f"{_layer(shapes, 'decoder')}.self_attention.query.kernel")
    return Form(scanned, joined=len(query) == 2 + scanned)


def _model(
    vocab: int, embed: int, *, tied: bool, decoder: StackSpec, encoder: StackSpec | None = None
) -> ModelSpec:
    return ModelSpec(
        family="t5",
        vocab=vocab,
        embed=embed,
        encoder=encoder,
        decoder=decoder,
        # T5X divides tied logits by sqrt(embed).
        heads=(LMHeadSpec(tied=True, logits_scale=None) if tied else LMHeadSpec(),),
    )


def _t5x_model_like(spec: ModelSpec) -> ModelSpec:
    def stack(name: str, like: StackSpec) -> StackSpec:
        block, mlp = like.blocks[0], mlp_of(name, like)
        attention = AttentionSpec(
            block.attention.num_heads, block.attention.head_dim, logits_scale=1.0
        )
        mlp = MlpSpec(mlp.hidden, mlp.activation, mlp.gated)
        cross = None if block.cross_attention is None else attention
        return StackSpec(
            like.num_layers,
            (TransformerBlockSpec(attention, mlp, cross_attention=cross),) * len(like.blocks),
            causal=like.causal,
            position_bias=bias_of(name, like),
        )

    assert spec.decoder is not None
    tied = any(isinstance(head, LMHeadSpec) and head.tied for head in spec.heads)
    encoder = None if spec.encoder is None else stack("encoder", spec.encoder)
    decoder = stack("decoder", spec.decoder)
    return _model(spec.vocab, spec.embed, tied=tied, decoder=decoder, encoder=encoder)


def _stacks(shapes: Mapping[str, Any]) -> list[str]:
    stacks = [name for name in ("encoder", "decoder") if _below(shapes, f"target.{name}.")]
    if "decoder" not in stacks:
        raise InputError("T5X checkpoint: it lacks target.decoder, which all T5X models have")
    return stacks


def _stack(shapes: Mapping[str, Any], name: str, *, tied: bool, crossed: bool) -> StackSpec:
    scanned, layer = _is_scanned(shapes, name), _layer(shapes, name)

    def one(*names: str) -> tuple[int, ...]:
        shape = _shape(shapes, *names)
        return shape[:1] + shape[2:] if scanned else shape

    shared_bias = f"target.{name}.relpos_bias.rel_embedding"
    if shared_bias in shapes:
        num_heads, num_buckets = _shape(shapes, shared_bias)
    else:
        num_heads, num_buckets = one(f"{layer}.relpos_bias.rel_embedding", shared_bias)
    width = math.prod(one(f"{layer}.{_SELF_ATTENTION[name]}.query.kernel")[1:])
    if width % num_heads:
        raise InputError(
            f"T5X checkpoint: {layer}.….query.kernel has {width} columns, which {num_heads} heads "
            "(of relpos_bias) do not divide"
        )
    gated = f"{layer}.mlp.wi_0.kernel" in shapes
    hidden = one(f"{layer}.mlp.{'wi_0' if gated else 'wi'}.kernel")[1]
    if scanned:
        num_layers = _shape(shapes, f"target.{name}.{name}.pre_mlp_layer_norm.scale")[1]
    else:
        pattern = re.compile(rf"target\.{name}\.layers_(\d+)\.")
        num_layers = max(int(match[1]) for key in shapes if (match := pattern.match(key))) + 1
    attention = AttentionSpec(num_heads, width // num_heads, logits_scale=1.0)
    mlp = MlpSpec(hidden, "gelu_tanh" if gated else "relu", gated)
    return StackSpec(
        num_layers,
        (TransformerBlockSpec(attention, mlp, cross_attention=attention if crossed else None),),
        causal=name == "decoder",
        position_bias=RelativeBiasSpec(num_buckets, per_layer=shared_bias not in shapes),
        dropout_rate=0.1 if tied else 0.0,
    )


def _is_scanned(shapes: Mapping[str, Any], name: str) -> bool:
    return bool(_below(shapes, f"target.{name}.{name}."))


def _layer(shapes: Mapping[str, Any], name: str) -> str:
    """Returns the prefix of the names of the first layer, or of all if they are scanned."""
    layer = f"target.{name}.{name if _is_scanned(shapes, name) else 'layers_0'}"
    if not _below(shapes, f"{layer}."):
        example = next(iter(_below(shapes, f"target.{name}.")), "nothing")
        raise InputError(
            f"T5X checkpoint: no layers of a T5 below target.{name}: neither layers_0 nor {name}, "
            f"but {example}"
        )
    return layer


def _below(shapes: Mapping[str, Any], prefix: str) -> Sequence[str]:
    return [name for name in shapes if name.startswith(prefix)]


def _shape(shapes: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    for name in names:
        if name in shapes:
            return tuple(shapes[name].shape)
    raise InputError(f"T5X checkpoint: {' or '.join(names)} is missing; is it a T5?")
