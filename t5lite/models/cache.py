"""The decoding cache: an explicit pytree with the batch on a known axis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.models.stack import StackCache, batch_axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """All that decoding keeps between two steps.

    Args:
      lengths: `[batch]` int32, decoder tokens held.
      own: what the decoder's layers keep of its own tokens: keys and values, or a state.
      cross: the encoder's keys and values, computed once; None for a decoder alone. A row of them
        may serve several rows next to each other, see `repeat`.
      encoder_segments: `[inputs, encoder_length]` int32, 0 for padding; likewise.
      draft_length: how many tokens `rewind` may take back in layers that see a window, which is
        also how many a step may have beyond its first; None where any number will do.
    """

    lengths: jax.Array
    own: StackCache
    cross: StackCache | None = None
    encoder_segments: jax.Array | None = None
    draft_length: int | None = dataclasses.field(default=None, metadata={"static": True})

    def extended(self, own: StackCache, n: int) -> "Cache":
        """Returns the cache with `n` tokens more in every row."""
        return dataclasses.replace(self, own=own, lengths=self.lengths + n)

    def check(self, n: int) -> None:
        """Raises an InputError if windows have no slots for a step of `n` tokens."""
        if self.draft_length is not None and n > self.draft_length + 1:
            raise InputError(
                f"a step of {n} tokens: this cache of windows has slots for "
                f"{self.draft_length + 1}; start(..., draft_length={n - 1})"
            )

    def rewind(self, lengths: jax.Array) -> "Cache":
        """Forgets all but the first `lengths` `[batch]` int32 tokens of each row.

        Of what windows see, no more than `draft_length` tokens can be taken back.
        """
        return dataclasses.replace(self, lengths=lengths)

    def reorder(self, rows: jax.Array) -> "Cache":
        """Row i becomes what row `rows[i]` was, `rows` `[batch]` int32, as beams change places.

        Beams belong to one input, so the encoder's keys and values stay where they are.
        """

        def taken(part: str) -> Any:
            return jax.tree.map(
                lambda array: jnp.take(array, rows, axis=batch_axis(part)), self.own[part]
            )

        own = {part: taken(part) for part in self.own}
        return dataclasses.replace(self, own=own, lengths=jnp.take(self.lengths, rows))

    def repeat(self, n: int) -> "Cache":
        """Returns each row `n` times, next to each other, all with the encoder's one row."""
        return self.reorder(jnp.repeat(jnp.arange(len(self.lengths), dtype=jnp.int32), n))
