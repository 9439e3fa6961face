"""The encoder-decoder: T5's topology."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.layers import TokenEmbedding, causal_mask, padding_mask, projection, segment_mask
from t5lite.models.block import Context
from t5lite.models.cache import Cache
from t5lite.models.spec import ComputeSpec, ModelSpec
from t5lite.models.stack import Stack

Batch = dict[str, jax.Array]


class EncoderDecoder(nn.Module):
    """Token embedding, encoder, decoder and logits; the methods are those of `Model`."""

    spec: ModelSpec
    compute: ComputeSpec

    def setup(self) -> None:
        spec, compute = self.spec, self.compute
        self.token_embedding = TokenEmbedding(spec.vocab, spec.embed, compute.jax_dtype)
        self.encoder = Stack(spec.encoder, spec.embed, compute)
        self.decoder = Stack(spec.decoder, spec.embed, compute)
        if not spec.tied_logits:
            self.head = projection(
                ("embed", "vocab"), (spec.vocab,), dtype=compute.jax_dtype, float32_output=True
            )

    def encode(self, batch: Batch) -> jax.Array:
        """Returns the encoder's output `[batch, encoder_length, embed]`."""
        tokens = batch["encoder_input_tokens"]
        segments = _segments(batch, "encoder", tokens)
        context = Context(mask=segment_mask(segments, segments))
        return self.encoder(self.token_embedding(tokens), context)[0]

    def hidden(self, batch: Batch) -> jax.Array:
        """Returns the decoder's output `[batch, decoder_length, embed]`."""
        tokens = batch["decoder_input_tokens"]
        encoder_segments = _segments(batch, "encoder", batch["encoder_input_tokens"])
        # A row without packing is one segment up to its end: the start token shares id 0 with
        # padding, and targets cannot see what follows them anyway.
        segments = batch.get("decoder_segment_ids", jnp.ones_like(tokens))
        order = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        context = Context(
            mask=segment_mask(segments, segments) & causal_mask(order, order),
            encoded=self.encode(batch),
            cross_mask=segment_mask(segments, encoder_segments),
        )
        return self.decoder(self.token_embedding(tokens), context)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns `[batch, length, vocab]` float32."""
        if self.spec.tied_logits:
            logits = self.token_embedding.attend(hidden)
            logits = logits * jnp.float32(self.spec.embed**-0.5)
        else:
            logits = self.head(hidden)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def start(self, batch: Batch, max_length: int) -> Cache:
        """Encodes once and makes room for `max_length` decoder tokens."""
        tokens = batch["encoder_input_tokens"]
        return Cache(
            lengths=jnp.zeros(len(tokens), jnp.int32),
            own=self.decoder.empty_key_values(len(tokens), max_length),
            cross=self.decoder.cross_key_values(self.encode(batch)),
            encoder_valid=_segments(batch, "encoder", tokens) > 0,
        )

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decodes `tokens` `[batch, n]` behind those in the cache."""
        positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        slots = jnp.arange(cache.max_length, dtype=jnp.int32)[None]
        context = Context(
            mask=causal_mask(positions, slots),
            cross_mask=padding_mask(cache.encoder_valid),
            positions=positions,
        )
        hidden, own = self.decoder(
            self.token_embedding(tokens), context, cached=cache.own, cross=cache.cross
        )
        assert own is not None
        return self.logits(hidden), cache.extended(own, tokens.shape[1])

    def __call__(self, batch: Batch) -> jax.Array:
        return self.logits(self.hidden(batch))


def _segments(batch: Batch, stack: str, tokens: jax.Array) -> jax.Array:
    """Segment ids; in a row without packing, every token but padding is segment 1."""
    return batch.get(f"{stack}_segment_ids", (tokens > 0).astype(jnp.int32))
