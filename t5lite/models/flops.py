"""FLOPs of a forward pass: its matrix products, counted from the spec."""

from typing import Any

from t5lite.layers import LMHeadSpec, Weights
from t5lite.models.model import Model
from t5lite.models.spec import ModelSpec, StackSpec


def forward_flops(
    spec: ModelSpec,
    *,
    encoder_length: int = 0,
    decoder_length: int = 0,
    num_logits: int | None = None,
) -> int:
    """Returns the multiply-adds × 2 of one forward pass over one row, padding included.

    Matrix products only: projections, attention and logits; masked attention counts in full,
    because most kernels compute it; so do the slots of experts. A training step is 3 × this (the
    backward pass is twice the forward) without rematerialisation.

    Args:
      encoder_length: encoder tokens a row; 0 without an encoder.
      decoder_length: decoder tokens a row; 0 without a decoder.
      num_logits: positions of a row whose logits over the vocabulary are computed; None: all of the
        last stack, if the model has a head for them.
    """
    total = 0
    if spec.encoder is not None:
        width = spec.encoder.embed or spec.embed
        total += _stack(spec.encoder, width, encoder_length)
        if spec.embedding_size is not None:
            total += 2 * encoder_length * spec.embedding_size * width
    if spec.decoder is not None:
        encoder: dict[str, Any] = {
            "encoder_length": encoder_length,
            "encoder_embed": None if spec.encoder is None else spec.encoder.embed,
        }
        total += _stack(spec.decoder, spec.embed, decoder_length, **encoder)
    if num_logits is None:
        length = decoder_length if spec.decoder is not None else encoder_length
        num_logits = length if any(head.kind == "lm" for head in spec.heads) else 0
    total += 2 * num_logits * (spec.embedding_size or spec.embed) * spec.vocab
    if spec.adapters:
        total += _adapters(spec, {"encoder": encoder_length, "decoder": decoder_length}, num_logits)
    return total


def _adapters(spec: ModelSpec, lengths: dict[str, int], num_logits: int) -> int:
    """Returns the FLOPs of all adapters, without those of lookups."""
    weights, total = Weights(adapters=spec.adapters), 0
    for path, matrix in Model(spec).matrices().items():
        flops = sum(adapter.flops(matrix) for adapter in weights.adapters_of(path))
        side, *names = path.split("/")
        if side not in lengths:
            tied = any(isinstance(head, LMHeadSpec) and head.tied for head in spec.heads)
            logits = side == "lm_head" or (side == "token_embedding" and tied)
            total += num_logits * flops * logits
            continue
        stack, length = getattr(spec, side), lengths[side]
        if "cross_attention" in names and names[-2] in ("key", "value"):
            length = lengths["encoder"]
        if "experts" in names:
            blocks = stack.first_blocks if names[0] == "first" else stack.blocks
            moe = blocks[int(names[1].removeprefix("block_"))].mlp
            length = moe.num_experts * moe.slots(length)
        total += flops * length * (stack.num_periods if names[0] == "layers" else 1)
    return total


def _stack(spec: StackSpec, embed: int, length: int, **encoder: Any) -> int:
    return sum(block.flops(embed, length, **encoder) for block in spec.every_block)
