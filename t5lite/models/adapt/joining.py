"""Encoder-decoders from models that are one of the two, or from two such models."""

from typing import Literal

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.layers import HeadSpec, LearnedPositionsSpec, LMHeadSpec, RelativeBiasSpec
from t5lite.models.adapt.parameters import (
    below,
    check_parameters,
    completed,
    flat,
    nested,
    shapes_of,
)
from t5lite.models.block import TransformerBlockSpec
from t5lite.models.model import Params
from t5lite.models.spec import ModelSpec, StackSpec

Source = tuple[ModelSpec, Params]
CROSS_ATTENTION = ("copied", "fresh")


def to_encoder_decoder(
    spec: ModelSpec,
    params: Params,
    *,
    cross_attention: Literal["copied", "fresh"] | None = None,
    shared_embedding: bool | None = None,
    heads: tuple[HeadSpec, ...] | None = None,
    family: str | None = None,
    rng: jax.Array | None = None,
) -> Source:
    """Makes an encoder-decoder of a decoder (T5Gemma) or of an encoder (BERT2BERT).

    Both stacks start from the one there is. The encoder sees both sides, the decoder only what came
    before: nothing else differs between them but cross-attention.

    Args:
      spec: of a decoder or an encoder alone.
      params: its parameters.
      cross_attention: "copied" from each layer's self-attention, but without rotary positions and
        windows; "fresh", which the T5Gemma paper then trains alone for the first steps. None
        for what the papers do: "copied" from a decoder, "fresh" behind an encoder. Its norms are
        copied from self-attention's either way.
      shared_embedding: whether both stacks look up the same table, rather than a copy each; None
        for a copy each of Gemma 2's, as T5Gemma has them, and for the same table else.
      heads: of the new model; None for a decoder's own, and for tied logits behind an encoder.
        Those that the old model has keep their parameters, others are drawn.
      family: see `ModelSpec`; None for "t5gemma" from Gemma 2, and "encoder_decoder" else.
      rng: a PRNG key; needed only where something is drawn.

    Returns:
      The new model's spec and parameters.

    Raises:
      InputError: if the model is an encoder-decoder already, if its blocks cannot have
        cross-attention, if the parameters do not fit the spec, or if `rng` is needed and missing.

    Source: Zhang et al. 2025, arXiv:2504.06225, §3; Rothe et al. 2020, arXiv:1907.12461, §2.
    """
    if spec.topology == "encoder_decoder":
        raise InputError(
            "spec must be that of an encoder or a decoder alone: it has both already", field="spec"
        )
    if cross_attention is None:
        cross_attention = "copied" if spec.decoder is not None else "fresh"
    if shared_embedding is None:
        shared_embedding = _family(spec) != "t5gemma"
    source = (spec, params)
    return _joined(source, source, cross_attention, shared_embedding, heads, family, rng)


def join(
    encoder: Source,
    decoder: Source,
    *,
    cross_attention: Literal["copied", "fresh"] = "fresh",
    shared_embedding: bool = False,
    heads: tuple[HeadSpec, ...] | None = None,
    family: str | None = None,
    rng: jax.Array | None = None,
) -> Source:
    """Makes an encoder-decoder of two models of one vocabulary, whose widths may differ.

    Embeddings of token type 0, where there are any, are added to the learned positions, as an
    encoder-decoder reads texts of one type.

    Args:
      encoder: spec and parameters of the model whose encoder, or else decoder, becomes the encoder.
      decoder: those of the model whose decoder, or else encoder, becomes the decoder.
      cross_attention: see `to_encoder_decoder`; "copied" asks for equal widths.
      shared_embedding: whether the decoder's table serves the encoder too, for models that were
        trained with the same one.
      heads: see `to_encoder_decoder`; None for the decoder's own.
      family: see `to_encoder_decoder`.
      rng: a PRNG key; needed only where something is drawn.

    Returns:
      The new model's spec and parameters.

    Raises:
      InputError: if the two do not go together, or as in `to_encoder_decoder`.

    Source: Zhang et al. 2025, arXiv:2504.06225, §3 (9B-2B); Rothe et al. 2020, arXiv:1907.12461, §2
    (BERT2GPT).
    """
    if decoder[0].topology == "encoder_decoder":
        raise InputError(
            "decoder must be a decoder or an encoder alone: it has an encoder already",
            field="decoder",
        )
    if encoder[0].vocab != decoder[0].vocab:
        raise InputError(
            f"vocab must be the same in both: {encoder[0].vocab} in the encoder's model, "
            f"{decoder[0].vocab} in the decoder's; use extend_vocabulary or replace_vocabulary",
            field="vocab",
        )
    sources = _without_types(encoder), _without_types(decoder)
    return _joined(*sources, cross_attention, shared_embedding, heads, family, rng)


def _joined(
    encoder: Source,
    decoder: Source,
    cross_attention: str,
    shared_embedding: bool,
    heads: tuple[HeadSpec, ...] | None,
    family: str | None,
    rng: jax.Array | None,
) -> Source:
    _check(encoder, decoder, cross_attention, shared_embedding)
    spec, params = decoder
    encoder_stack, encoder_params = _turned(encoder, causal=False)
    decoder_stack, decoder_params = _turned(decoder, causal=True)
    width = _encoder_width(encoder[0])
    if heads is None:
        heads = spec.heads if spec.decoder is not None else (LMHeadSpec(tied=True),)
    new_spec = spec.replace(
        family=_family(encoder[0], spec) if family is None else family,
        encoder=encoder_stack.replace(embed=None if width == spec.embed else width),
        decoder=decoder_stack.replace(
            blocks=tuple(_crossed(block) for block in decoder_stack.blocks),
            first_blocks=tuple(_crossed(block) for block in decoder_stack.first_blocks),
        ),
        heads=heads,
        shared_embedding=shared_embedding,
    )
    kept = [f"{head.kind}_head" for head in heads if head in spec.heads]
    names = ["token_embedding", "token_type_embedding", *kept]
    new_params = {name: params[name] for name in names if name in params}
    if not shared_embedding:
        own = "token_embedding" if encoder[0].shared_embedding else "encoder_embedding"
        new_params["encoder_embedding"] = encoder[1][own]
    new_params |= {"encoder": encoder_params, "decoder": decoder_params}
    crossing = _crossing(new_spec, decoder_params, copied=cross_attention == "copied")
    new_params = nested(flat(new_params) | crossing)
    return new_spec, completed(new_spec, new_params, rng=rng)


def _check(encoder: Source, decoder: Source, cross_attention: str, shared: bool) -> None:
    """Raises an InputError if two models do not go together."""
    for spec, params in (encoder, decoder):
        check_parameters(spec, params)
        if spec.embedding_size is not None:
            raise InputError(
                f"embedding_size = {spec.embedding_size}: a model with a decoder has none; choose "
                "a model whose embedding is as wide as its layers",
                field="embedding_size",
            )
    if cross_attention not in CROSS_ATTENTION:
        raise InputError(
            f"cross_attention must be one of {', '.join(CROSS_ATTENTION)}, not {cross_attention!r}",
            field="cross_attention",
        )
    widths = _encoder_width(encoder[0]), decoder[0].embed
    if widths[0] == widths[1]:
        return
    for name, value, fix in (
        ("cross_attention", cross_attention, "fresh"),
        ("shared_embedding", shared, False),
    ):
        if value != fix:
            raise InputError(
                f"{name} must be {fix!r} where encoder and decoder differ in width "
                f"({widths[0]} and {widths[1]})",
                field=name,
            )


def _turned(source: Source, *, causal: bool) -> tuple[StackSpec, Params]:
    """Returns a stack of a model, made to see one side or both, and its parameters."""
    spec, params = source
    preferred, other = ("decoder", "encoder") if causal else ("encoder", "decoder")
    side = preferred if getattr(spec, preferred) is not None else other
    stack, tree = getattr(spec, side), params[side]
    bias = stack.position_bias
    if stack.causal == causal:
        return stack, tree
    if isinstance(bias, RelativeBiasSpec):
        # A stack that sees one side has all buckets on it; one that sees both has half on each.
        num_buckets = bias.num_buckets // 2 if causal else 2 * bias.num_buckets
        stack = stack.replace(position_bias=bias.replace(num_buckets=num_buckets))
        leaves = flat(tree)
        for path, leaf in leaves.items():
            if path.endswith("position_bias/embedding"):
                behind = leaf[..., :num_buckets]
                leaves[path] = behind if causal else jnp.concatenate([leaf, leaf], axis=-1)
        tree = nested(leaves)
    return stack.replace(causal=causal), tree


def _crossed(block: TransformerBlockSpec) -> TransformerBlockSpec:
    return block.replace(cross_attention=block.attention.replace(rotary=None, window=None))


def _crossing(spec: ModelSpec, decoder: Params, *, copied: bool) -> dict[str, jax.Array]:
    """Returns, by their paths, the parameters that cross-attention takes from self-attention."""
    assert spec.decoder is not None
    expected = shapes_of(spec)
    taken = {}
    for place in {spec.decoder.place(layer)[0] for layer in range(spec.decoder.num_layers)}:
        for path, leaf in flat(below(decoder, place)).items():
            sublayer = path.split("/")[0]
            new = f"decoder/{place}/cross_{path}"
            if (
                sublayer.startswith("attention")
                and new in expected
                and (copied or sublayer != "attention")
            ):
                taken[new] = leaf
    return taken


def _without_types(source: Source) -> Source:
    """Returns a model whose token type 0 is part of its positions."""
    spec, params = source
    if spec.num_token_types is None:
        return source
    check_parameters(spec, params)
    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        if stack is None:
            continue
        if not isinstance(stack.position_embedding, LearnedPositionsSpec):
            raise InputError(
                "num_token_types must be None, or there must be learned positions to add the "
                f"embedding of token type 0 to: {name} has none",
                field="num_token_types",
            )
        table = params[name]["position_embedding"]["embedding"]
        row = jnp.asarray(params["token_type_embedding"]["embedding"])[:1]
        moved = table + jnp.broadcast_to(row * stack.embedding_scale, table.shape)
        tree = params[name] | {"position_embedding": {"embedding": moved}}
        params = params | {name: tree}
    params = {name: tree for name, tree in params.items() if name != "token_type_embedding"}
    return spec.replace(num_token_types=None), params


def _family(*specs: ModelSpec) -> str:
    return "t5gemma" if {spec.family for spec in specs} == {"gemma2"} else "encoder_decoder"


def _encoder_width(spec: ModelSpec) -> int:
    own = None if spec.encoder is None else spec.encoder.embed
    return own or spec.embed
