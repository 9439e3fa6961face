"""The three topologies: BERT's encoder, GPT's decoder and T5's encoder-decoder."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.errors import InputError
from t5lite.layers import AttentionMask
from t5lite.models.block import Context
from t5lite.models.cache import Cache
from t5lite.models.transformer import (
    Batch,
    Transformer,
    check_room,
    decoder_segments,
    encoder_segments,
    order_of,
    positions_of,
)


class Encoder(Transformer):
    """Every token sees every other."""

    def setup(self) -> None:
        super().setup()
        self.encoder = self.stack("encoder")

    def encode(self, batch: Batch) -> Float[Array, "batch length embed"]:
        """Returns the encoder's output."""
        x = self.embed_inputs(batch["encoder_input_tokens"], batch.get("token_types"))
        context = Context(
            mask=AttentionMask.within(encoder_segments(batch), causal=False),
            positions=positions_of(batch, "encoder"),
        )
        return self.encoder(x, context)[0]

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        return self.encode(batch)

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        raise InputError("an encoder cannot generate: choose a model with a decoder")


class Decoder(Transformer):
    """A token sees those before it, and within a prefix those after it too."""

    def setup(self) -> None:
        super().setup()
        self.decoder = self.stack("decoder")

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        x = self.embed(batch["decoder_input_tokens"], batch.get("token_types"))
        context = Context(mask=_prefix_mask(batch), positions=positions_of(batch, "decoder"))
        return self.decoder(x, context)[0]

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        """Reads the prompts, and makes room for `max_length` tokens a row, prompts included."""
        tokens = batch["decoder_input_tokens"]
        num_rows, length = tokens.shape
        if length > max_length:
            raise InputError(
                f"max_length = {max_length}: prompts are up to {length} tokens long",
                field="max_length",
            )
        check_room(self.spec.decoder, max_length)
        # The last token of each prompt is fed again, for its logits; padding follows it.
        lengths = batch["decoder_lengths"] - 1
        context = Context(
            mask=_prefix_mask(batch), positions=order_of(tokens), prompt_lengths=lengths
        )
        empty = self.decoder.empty_cache(num_rows, max_length, draft_length)
        _, own = self.decoder(self.embed(tokens), context, cached=empty)
        assert own is not None
        return Cache(lengths, own, draft_length=self.decoder.limit(draft_length))


class EncoderDecoder(Encoder):
    """A decoder whose tokens see those before them, and all of the encoder's output."""

    def setup(self) -> None:
        super().setup()
        self.decoder = self.stack("decoder")

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        segments = decoder_segments(batch)
        context = Context(
            mask=AttentionMask.within(segments, causal=True),
            positions=positions_of(batch, "decoder"),
            encoded=self.encode(batch),
            cross_mask=AttentionMask(segments, encoder_segments(batch)),
        )
        return self.decoder(self.embed(batch["decoder_input_tokens"]), context)[0]

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        """Encodes once and makes room for `max_length` decoder tokens."""
        num_rows = len(batch["encoder_input_tokens"])
        check_room(self.spec.decoder, max_length)
        return Cache(
            lengths=jnp.zeros(num_rows, jnp.int32),
            own=self.decoder.empty_cache(num_rows, max_length, draft_length),
            cross=self.decoder.cross_slots(self.encode(batch)),
            encoder_segments=encoder_segments(batch),
            draft_length=self.decoder.limit(draft_length),
        )


TOPOLOGIES: dict[str, type[Transformer]] = {
    "encoder": Encoder,
    "decoder": Decoder,
    "encoder_decoder": EncoderDecoder,
}


def _prefix_mask(batch: Batch) -> AttentionMask:
    """Returns a causal mask; tokens of a prefix see each other in both directions."""
    attention: jax.Array | None = batch.get("decoder_causal_attention")
    prefix = None if attention is None else attention > 0
    return AttentionMask.within(decoder_segments(batch), causal=True, prefix=prefix)
