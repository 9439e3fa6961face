"""How much arithmetic a model needs: its matrix products, counted from the spec."""

from t5lite.models.spec import ModelSpec, StackSpec


def forward_flops(
    spec: ModelSpec,
    *,
    encoder_length: int = 0,
    decoder_length: int = 0,
    num_logits: int | None = None,
) -> int:
    """Returns the multiply-adds × 2 of one forward pass over one row.

    Matrix products only: projections, attention and logits over the vocabulary; masked attention
    counts in full, because it is computed by most kernels; so do the slots of experts. A training
    step is 3 × this (the backward pass is twice the forward), without what rematerialisation adds.

    Args:
      spec: the model.
      encoder_length: encoder tokens a row, padding included; 0 without an encoder.
      decoder_length: decoder tokens a row, padding included; 0 without a decoder.
      num_logits: places of a row whose logits over the vocabulary are computed; None: all of the
        last stack, if the model has a head for them.
    """
    total = 0
    if spec.encoder is not None:
        width = spec.encoder.embed or spec.embed
        total += _stack(spec.encoder, width, encoder_length)
        if spec.embedding_size is not None:
            total += 2 * encoder_length * spec.embedding_size * width
    if spec.decoder is not None:
        encoder_width = None if spec.encoder is None else spec.encoder.embed
        total += _stack(spec.decoder, spec.embed, decoder_length, encoder_length, encoder_width)
    if num_logits is None:
        length = decoder_length if spec.decoder is not None else encoder_length
        num_logits = length if any(head.kind == "lm" for head in spec.heads) else 0
    total += 2 * num_logits * (spec.embedding_size or spec.embed) * spec.vocab
    return total


def _stack(
    spec: StackSpec,
    embed: int,
    length: int,
    encoder_length: int = 0,
    encoder_embed: int | None = None,
) -> int:
    return sum(
        block.flops(embed, length, encoder_length=encoder_length, encoder_embed=encoder_embed)
        for block in spec.every_block
    )
