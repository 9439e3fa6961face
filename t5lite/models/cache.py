"""The decoding cache: an explicit pytree with the batch on a known axis."""

import dataclasses

import jax
import jax.numpy as jnp

from t5lite.models.stack import StackKeyValues, slots_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All that decoding keeps between two steps.

    Args:
      lengths: `[batch]` int32, decoder tokens held; slots behind them are free and never seen.
      own: the decoder's own keys and values, `[layers, batch, max_length, kv_heads, kv]`.
      cross: the encoder's keys and values, computed once, `[layers, batch, encoder_length, …]`;
        None for a decoder alone.
      encoder_segments: `[batch, encoder_length]` int32, 0 for padding; likewise.
    """

    lengths: jax.Array
    own: StackKeyValues
    cross: StackKeyValues | None = None
    encoder_segments: jax.Array | None = None

    @property
    def max_length(self) -> int:
        return slots_of(self.own)

    def extended(self, own: StackKeyValues, n: int) -> "Cache":
        """Returns the cache with `n` tokens more in every row."""
        return dataclasses.replace(self, own=own, lengths=self.lengths + n)

    def rewind(self, lengths: jax.Array) -> "Cache":
        """Forgets all but the first `lengths` `[batch]` int32 tokens of each row."""
        return dataclasses.replace(self, lengths=lengths)

    def reorder(self, rows: jax.Array) -> "Cache":
        """Row i becomes what row `rows[i]` was, `rows` `[batch]` int32, as beams change places.

        Beams belong to one input, so the encoder's keys and values stay where they are.
        """

        def take(array: jax.Array) -> jax.Array:
            return jnp.take(array, rows, axis=array.ndim - 4)

        own = jax.tree.map(take, self.own)
        return dataclasses.replace(self, own=own, lengths=jnp.take(self.lengths, rows))
