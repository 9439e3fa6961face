"""The encoder-decoder: T5's topology."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

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


class EncoderDecoder(Transformer):
    """A decoder whose tokens see those before them, and all of the encoder's output."""

    def setup(self) -> None:
        super().setup()
        assert self.spec.encoder is not None
        assert self.spec.decoder is not None
        self.encoder = self.stack(self.spec.encoder, stacked=self.stacked)
        self.decoder = self.stack(self.spec.decoder, stacked=self.stacked)

    def encode(self, batch: Batch) -> Float[Array, "batch encoder_length embed"]:
        """Returns the encoder's output."""
        context = Context(
            mask=AttentionMask.within(encoder_segments(batch), causal=False),
            positions=positions_of(batch, "encoder"),
        )
        x = self.embed_inputs(batch["encoder_input_tokens"], batch.get("token_types"))
        return self.encoder(x, context)[0]

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        """Returns the decoder's output."""
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

    def extend(
        self, tokens: Int32[Array, "batch n"], cache: Cache
    ) -> tuple[Float32[Array, "batch n vocab"], Cache]:
        """Decodes tokens after those in the cache."""
        n = tokens.shape[1]
        cache.check(n)
        context = Context(
            mask=None,
            positions=cache.lengths[:, None] + order_of(tokens),
            cross_mask=AttentionMask(kv_segments=cache.encoder_segments),
        )
        hidden, own = self.decoder(self.embed(tokens), context, cached=cache.own, cross=cache.cross)
        assert own is not None
        return self.logits(hidden), cache.extended(own, n)
