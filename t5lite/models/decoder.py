"""The decoder alone: GPT's topology."""

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.layers import AttentionMask
from t5lite.models.block import Context
from t5lite.models.cache import Cache
from t5lite.models.transformer import (
    Batch,
    Transformer,
    check_room,
    decoder_segments,
    order_of,
    positions_of,
)


class Decoder(Transformer):
    """A token sees those before it, and within a prefix those after it too."""

    def setup(self) -> None:
        super().setup()
        assert self.spec.decoder is not None
        self.decoder = self.stack(self.spec.decoder)

    def hidden(self, batch: Batch) -> jax.Array:
        """Returns the decoder's output `[batch, length, embed]`."""
        x = self.embed(batch["decoder_input_tokens"], batch.get("token_types"))
        context = Context(
            mask=AttentionMask.within(decoder_segments(batch), causal=True, prefix=_prefix(batch)),
            positions=positions_of(batch, "decoder"),
        )
        return self.decoder(x, context)[0]

    def start(self, batch: Batch, max_length: int) -> Cache:
        """Reads the prompts, and makes room for `max_length` tokens a row, theirs included."""
        tokens, prefix = batch["decoder_input_tokens"], _prefix(batch)
        num_rows, length = tokens.shape
        if length > max_length:
            raise InputError(f"max_length = {max_length}: prompts are up to {length} tokens long")
        check_room(self.spec.decoder, max_length)
        cache = Cache(
            lengths=jnp.zeros(num_rows, jnp.int32),
            own=self.decoder.empty_key_values(num_rows, max_length),
        )
        if prefix is not None:
            prefix = jnp.pad(prefix, ((0, 0), (0, max_length - length)))
        _, cache = self._read(tokens, cache, prefix)
        # The last token of each prompt is fed again, for its logits; those behind are padding.
        return cache.rewind(batch["decoder_lengths"] - 1)

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decodes `tokens` `[batch, n]` behind those in the cache."""
        hidden, cache = self._read(tokens, cache, None)
        return self.logits(hidden), cache

    def _read(
        self, tokens: jax.Array, cache: Cache, prefix: jax.Array | None
    ) -> tuple[jax.Array, Cache]:
        slots = cache.lengths[:, None] + order_of(tokens)
        mask = AttentionMask(
            q_order=slots,
            kv_order=jnp.arange(cache.max_length, dtype=jnp.int32)[None],
            q_prefix=None if prefix is None else prefix[:, : tokens.shape[1]],
            kv_prefix=prefix,
            causal=True,
        )
        context = Context(mask=mask, positions=slots, slots=slots)
        hidden, own = self.decoder(self.embed(tokens), context, cached=cache.own)
        assert own is not None
        return hidden, cache.extended(own, tokens.shape[1])


def _prefix(batch: Batch) -> jax.Array | None:
    """Returns `[batch, length]` bool, the tokens that see each other in both directions."""
    attention = batch.get("decoder_causal_attention")
    return None if attention is None else attention > 0
