"""The three topologies, BERT's encoder, GPT's decoder and T5's encoder-decoder, and their base."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from t5lite.errors import InputError
from t5lite.layers import AttentionMask, TokenEmbedding, Weights
from t5lite.models.block import Context
from t5lite.models.cache import Cache
from t5lite.models.spec import ComputeSpec, ModelSpec, StackSpec
from t5lite.models.stack import Stack

Batch = dict[str, jax.Array]


class Transformer(nn.Module):
    """The base of the three topologies, whose public methods are those of `Model`."""

    spec: ModelSpec
    compute: ComputeSpec
    stacked: bool = True

    def setup(self) -> None:
        spec, dtype = self.spec, self.compute.jax_dtype
        width, weights = spec.embedding_size or spec.embed, self.weights()
        table = functools.partial(TokenEmbedding, spec.vocab, dtype=dtype, weights=weights)
        self.token_embedding = table(width)
        if not spec.shared_embedding:
            assert spec.encoder is not None
            self.encoder_embedding = table(spec.encoder.embed or spec.embed)
        if spec.num_token_types is not None:
            self.token_type_embedding = TokenEmbedding(
                spec.num_token_types,
                width,
                dtype,
                weights,
                table="token_types",
                axis="token_types",
            )
        for head in spec.heads:
            setattr(self, f"{head.kind}_head", head.make(spec.embed, spec.vocab, dtype, weights))

    def weights(self, num_updates: int = 1) -> Weights:
        """Returns the policies of weights; see `InitSpec.kernel` for `num_updates`."""
        return Weights(self.spec.init, num_updates, self.spec.adapters, self.compute.storage)

    def stack(self, side: str) -> Stack:
        spec: StackSpec = getattr(self.spec, side)
        embed = spec.embed or self.spec.embed
        weights = self.weights(spec.num_updates)
        return Stack(spec, embed, self.spec.embedding_size, self.compute, self.stacked, weights)

    def embed(
        self,
        tokens: Int32[Array, "batch length"],
        types: Int32[Array, "batch length"] | None = None,
        *,
        side: str = "decoder",
    ) -> Float[Array, "batch length embed"]:
        """Looks up tokens and their types, all 0 by default; the encoder may have its own table."""
        own = side == "encoder" and not self.spec.shared_embedding
        x = (self.encoder_embedding if own else self.token_embedding)(tokens)
        if self.spec.num_token_types is not None:
            x = x + self.token_type_embedding(jnp.zeros_like(tokens) if types is None else types)
        return x

    def logits(
        self, hidden: Float[Array, "batch length embed"]
    ) -> Float32[Array, "batch length {self.spec.vocab}"]:
        logits = self.lm_head(hidden, self.token_embedding)
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def output(self, kind: str, hidden: jax.Array, valid: jax.Array) -> jax.Array:
        return getattr(self, f"{kind}_head")(hidden, valid)

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Runs every part of the model once; parameters are drawn by this."""
        hidden = self.hidden(batch)
        valid = jnp.ones(hidden.shape[:2], bool)
        return {
            head.kind: self.logits(hidden)
            if head.kind == "lm"
            else self.output(head.kind, hidden, valid)
            for head in self.spec.heads
        }

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        """Returns the last stack's output."""
        raise NotImplementedError

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        """Prepares decoding for `max_length` tokens, prompts included; see `Model.start`."""
        raise NotImplementedError

    def extend(
        self, tokens: Int32[Array, "batch n"], cache: Cache
    ) -> tuple[Float32[Array, "batch n vocab"], Cache]:
        n = tokens.shape[1]
        cache.check(n)
        segments = cache.encoder_segments
        context = Context(
            mask=None,
            positions=cache.lengths[:, None] + order_of(tokens),
            cross_mask=None if segments is None else AttentionMask(kv_segments=segments),
        )
        hidden, own = self.decoder(self.embed(tokens), context, cached=cache.own, cross=cache.cross)
        return self.logits(hidden), cache.extended(own, n)


class Encoder(Transformer):
    """Every token sees every other."""

    def setup(self) -> None:
        super().setup()
        self.encoder = self.stack("encoder")

    def encode(self, batch: Batch) -> Float[Array, "batch length embed"]:
        types = batch.get("token_types")
        x = self.embed(batch["encoder_input_tokens"], types, side="encoder")
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


def order_of(tokens: jax.Array) -> jax.Array:
    """Returns `[1, length]` int32: 0, 1, 2, …"""
    return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]


def positions_of(batch: Batch, side: str) -> jax.Array:
    """Returns each token's position in its text, `[batch or 1, length]` int32."""
    order = order_of(batch[f"{side}_input_tokens"])
    if f"{side}_lengths" in batch or f"{side}_segment_ids" not in batch:
        return order  # a row is one text
    segments = batch[f"{side}_segment_ids"]
    starts = jnp.diff(segments, axis=1, prepend=jnp.zeros_like(segments[:, :1])) != 0
    first = jnp.where(starts, jnp.broadcast_to(order, segments.shape), 0)
    return jnp.broadcast_to(order, segments.shape) - lax.cummax(first, axis=1)


def encoder_segments(batch: Batch) -> jax.Array:
    """Returns the encoder's segment ids `[batch, length]`, 0 on padding; without any, all are 1."""
    return batch.get("encoder_segment_ids", jnp.ones_like(batch["encoder_input_tokens"]))


def decoder_segments(batch: Batch) -> jax.Array:
    """Returns the decoder's segment ids `[batch, length]`. A row of one text is one segment to its
    end: the causal mask hides the padding after it without an array of the batch."""
    if "decoder_lengths" in batch or "decoder_segment_ids" not in batch:
        return jnp.ones_like(batch["decoder_input_tokens"])
    return batch["decoder_segment_ids"]


def check_room(spec: StackSpec | None, max_length: int) -> None:
    """Raises an InputError if a stack has no positions for `max_length` tokens."""
    if spec is not None and spec.position_embedding is not None:
        spec.position_embedding.check(max_length)
