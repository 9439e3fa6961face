"""The decoder alone: GPT's topology."""

import jax
from jaxtyping import Array, Float, Float32, Int32

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
        self.decoder = self.stack(self.spec.decoder, stacked=self.stacked)

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        """Returns the decoder's output."""
        x = self.embed(batch["decoder_input_tokens"], batch.get("token_types"))
        context = Context(
            mask=AttentionMask.within(decoder_segments(batch), causal=True, prefix=_prefix(batch)),
            positions=positions_of(batch, "decoder"),
        )
        return self.decoder(x, context)[0]

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        """Reads the prompts, and makes room for `max_length` tokens a row, theirs included."""
        tokens = batch["decoder_input_tokens"]
        num_rows, length = tokens.shape
        if length > max_length:
            raise InputError(
                f"max_length = {max_length}: prompts are up to {length} tokens long",
                field="max_length",
            )
        check_room(self.spec.decoder, max_length)
        # The last token of each prompt is fed again, for its logits; padding follows it.
        kept = batch["decoder_lengths"] - 1
        context = Context(
            mask=AttentionMask.within(decoder_segments(batch), causal=True, prefix=_prefix(batch)),
            positions=order_of(tokens),
            kept=kept,
        )
        empty = self.decoder.empty_cache(num_rows, max_length, draft_length)
        _, own = self.decoder(self.embed(tokens), context, cached=empty)
        assert own is not None
        return Cache(kept, own, draft_length=self.decoder.limit(draft_length))

    def extend(
        self, tokens: Int32[Array, "batch n"], cache: Cache
    ) -> tuple[Float32[Array, "batch n vocab"], Cache]:
        """Decodes tokens after those in the cache."""
        n = tokens.shape[1]
        cache.check(n)
        context = Context(mask=None, positions=cache.lengths[:, None] + order_of(tokens))
        hidden, own = self.decoder(self.embed(tokens), context, cached=cache.own)
        assert own is not None
        return self.logits(hidden), cache.extended(own, n)


def _prefix(batch: Batch) -> jax.Array | None:
    """Returns `[batch, length]` bool, the tokens that see each other in both directions."""
    attention = batch.get("decoder_causal_attention")
    return None if attention is None else attention > 0
