"""Encoder-decoders from one model, a decoder or an encoder, or from two."""

from typing import Literal

import jax
import jax.numpy as jnp

from t5lite.layers import HeadSpec, LearnedPositionsSpec, LMHeadSpec, RelativeBiasSpec
from t5lite.models.adapt.parameters import (
    below,
    check_parameters,
    completed,
    flat,
    nested,
    require,
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

    Both stacks start from the given one; they differ in causality and cross-attention alone.

    Args:
      cross_attention: "copied" from each layer's self-attention, but without rotary positions and
        windows; "fresh", which the T5Gemma paper then trains alone for the first steps. None for
        the papers' choice: "copied" from a decoder, "fresh" from an encoder. Its norms are copied
        from self-attention's either way.
      shared_embedding: whether both stacks look up the same table, rather than a copy each; None
        for a copy each of Gemma 2's, as T5Gemma has them, otherwise for the same table.
      heads: of the new model; None for a decoder's own, and for tied logits after an encoder. Heads
        of the old model keep their parameters, others are drawn.
      family: see `ModelSpec`; None for "t5gemma" from Gemma 2, otherwise "encoder_decoder".
      rng: a PRNG key; needed only where parameters are drawn.
    Raises: InputError if the model is an encoder-decoder already, if its blocks cannot have
    cross-attention, if the parameters do not fit the spec, or if `rng` is needed and missing.
    Source: Zhang et al. 2025, arXiv:2504.06225, §3; Rothe et al. 2020, arXiv:1907.12461, §2.
    """
    require(
        spec.topology != "encoder_decoder",
        "spec",
        "spec must be that of an encoder or a decoder alone: it has both already",
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

    Embeddings of token type 0, if any, are added to the learned positions: all texts have one type.

    Args:
      encoder: spec and parameters of the model whose encoder, or else decoder, becomes the encoder.
      decoder: spec and parameters of the model whose decoder, or else encoder, becomes the decoder.
      cross_attention: see `to_encoder_decoder`; "copied" needs equal widths.
      shared_embedding: whether both look up the decoder's table, for models trained with the same.
      heads, family, rng: see `to_encoder_decoder`.
    Raises: InputError if vocabularies or widths do not fit, or as in `to_encoder_decoder`.
    Source: see `to_encoder_decoder`; 9B-2B in the first, BERT2GPT in the second.
    """
    require(
        decoder[0].topology != "encoder_decoder",
        "decoder",
        "decoder must be a decoder or an encoder alone: it has an encoder already",
    )
    require(
        encoder[0].vocab == decoder[0].vocab,
        "vocab",
        f"vocab must be the same in both: {encoder[0].vocab} in the encoder's model, "
        f"{decoder[0].vocab} in the decoder's; use extend_vocabulary or replace_vocabulary",
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
    encoder_stack, encoder_params = _directed(encoder, causal=False)
    decoder_stack, decoder_params = _directed(decoder, causal=True)
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
    names = [f"{head.kind}_head" for head in heads if head in spec.heads]
    names += ["token_embedding", "token_type_embedding"]
    new_params = {name: params[name] for name in names if name in params}
    if not shared_embedding:
        own = "token_embedding" if encoder[0].shared_embedding else "encoder_embedding"
        new_params["encoder_embedding"] = encoder[1][own]
    new_params |= {"encoder": encoder_params, "decoder": decoder_params}
    crossing = _crossing(new_spec, decoder_params, copied=cross_attention == "copied")
    new_params = nested(flat(new_params) | crossing)
    return new_spec, completed(new_spec, new_params, rng=rng)


def _check(encoder: Source, decoder: Source, cross_attention: str, shared: bool) -> None:
    for spec, params in (encoder, decoder):
        check_parameters(spec, params)
        require(
            spec.embedding_size is None,
            "embedding_size",
            f"embedding_size = {spec.embedding_size}: a model with a decoder has none; choose "
            "a model whose embedding is as wide as its layers",
        )
    require(
        cross_attention in CROSS_ATTENTION,
        "cross_attention",
        f"cross_attention must be one of {', '.join(CROSS_ATTENTION)}, not {cross_attention!r}",
    )
    widths = _encoder_width(encoder[0]), decoder[0].embed
    for name, value, fix in (
        ("cross_attention", cross_attention, "fresh"),
        ("shared_embedding", shared, False),
    ):
        require(
            widths[0] == widths[1] or value == fix,
            name,
            f"{name} must be {fix!r} where encoder and decoder differ in width "
            f"({widths[0]} and {widths[1]})",
        )


def _directed(source: Source, *, causal: bool) -> tuple[StackSpec, Params]:
    """Returns a stack of a model, made causal or bidirectional, and its parameters."""
    spec, params = source
    side = [*spec.stacks][-1 if causal else 0]
    stack, tree = spec.stacks[side], params[side]
    bias = stack.position_bias
    if stack.causal == causal:
        return stack, tree
    if isinstance(bias, RelativeBiasSpec):
        # A causal stack has all buckets on one side, a bidirectional one has half on each.
        num_buckets = bias.num_buckets // 2 if causal else 2 * bias.num_buckets
        stack = stack.replace(position_bias=bias.replace(num_buckets=num_buckets))
        leaves = flat(tree)
        for path, leaf in leaves.items():
            if path.endswith("position_bias/embedding"):
                both = jnp.concatenate([leaf, leaf], axis=-1)
                leaves[path] = leaf[..., :num_buckets] if causal else both
        tree = nested(leaves)
    return stack.replace(causal=causal), tree


def _crossed(block: TransformerBlockSpec) -> TransformerBlockSpec:
    return block.replace(cross_attention=block.attention.replace(rotary=None, window=None))


def _crossing(spec: ModelSpec, decoder: Params, *, copied: bool) -> dict[str, jax.Array]:
    """Returns, by their paths, the parameters that cross-attention takes from self-attention."""
    assert spec.decoder is not None
    expected, leaves = shapes_of(spec), {}
    for block in {spec.decoder.location(layer)[0] for layer in range(spec.decoder.num_layers)}:
        for path, leaf in flat(below(decoder, block)).items():
            sublayer = path.split("/")[0]
            new = f"decoder/{block}/cross_{path}"
            chosen = sublayer.startswith("attention") and (copied or sublayer != "attention")
            if chosen and new in expected:
                leaves[new] = leaf
    return leaves


def _without_types(source: Source) -> Source:
    """Returns a model whose token type 0 is part of its positions."""
    spec, params = source
    if spec.num_token_types is None:
        return source
    check_parameters(spec, params)
    for name, stack in spec.stacks.items():
        require(
            isinstance(stack.position_embedding, LearnedPositionsSpec),
            "num_token_types",
            "num_token_types must be None, or there must be learned positions to add the "
            f"embedding of token type 0 to: {name} has none",
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
    return (spec.encoder and spec.encoder.embed) or spec.embed
