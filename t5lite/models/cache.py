"""The decoding cache: an explicit pytree with the batch on a known axis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from t5lite.errors import InputError
from t5lite.models.stack import StackCache, batch_axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The state of decoding between two steps.

    Args:
      lengths: `[batch]` int32, decoder tokens in the cache.
      own: of the decoder's layers: keys and values of its tokens, or another state.
      cross: the encoder's keys and values, computed once; None for a decoder alone. A row of them
        may serve several adjacent rows, see `repeat`.
      encoder_segments: `[inputs, encoder_length]` int32, 0 for padding; likewise.
      draft_length: the most tokens that `rewind` may take back in layers that see a window, and
        that a step may have beyond its first; None for no limit.
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

    def rewind(self, lengths: Int32[Array, " batch"]) -> "Cache":
        """Returns the cache of the first `lengths` tokens of each row; see `draft_length`."""
        return dataclasses.replace(self, lengths=lengths)

    def reorder(self, rows: Int32[Array, " rows"]) -> "Cache":
        """Returns the cache whose row i is row `rows[i]`, as in beam search, whose beams belong to
        one input: the encoder's keys and values do not move."""

        def take(part: str) -> Any:
            axis = batch_axis(part)
            return jax.tree.map(lambda array: jnp.take(array, rows, axis=axis), self.own[part])

        own = {part: take(part) for part in self.own}
        return dataclasses.replace(self, own=own, lengths=jnp.take(self.lengths, rows))

    def repeat(self, n: int) -> "Cache":
        """Returns each row `n` times, adjacent, all with the encoder's one row."""
        return self.reorder(jnp.repeat(jnp.arange(len(self.lengths), dtype=jnp.int32), n))

    def insert(self, rows: jax.Array, other: "Cache") -> "Cache":
        """Replaces whole rows.

        Args:
          rows: `[n]` int32, the rows to replace by those of `other`; out of range: dropped.
          other: of `n` rows, of the same model, size and `draft_length`, and of at most the same
            encoder length.
        Raises: InputError for another size, a longer encoder length, or rows of this cache that
        share the encoder's output (`repeat`).
        """
        if self.draft_length != other.draft_length:
            raise InputError(
                f"draft_length = {other.draft_length}: this cache has {self.draft_length}"
            )
        own = {part: _inserted(part, self.own[part], rows, other.own[part]) for part in self.own}
        cross, segments = self.cross, self.encoder_segments
        if cross is not None:
            assert segments is not None
            assert other.cross is not None
            assert other.encoder_segments is not None
            if len(segments) < len(self.lengths):
                raise InputError(
                    "rows of this cache share the encoder's output, and none can be replaced: "
                    "start it with num_samples=1"
                )
            if segments.shape[1] < other.encoder_segments.shape[1]:
                raise InputError(
                    f"an input of {other.encoder_segments.shape[1]} tokens: this cache has room "
                    f"for {segments.shape[1]}"
                )
            n = len(other.lengths) // len(other.encoder_segments)
            # Further positions are padding, which the segments mask.
            new = other.cross
            cross = {
                part: _inserted(part, cross[part], rows, new[part], repeat=n) for part in cross
            }
            segments = _inserted("", segments, rows, other.encoder_segments, repeat=n)
        return dataclasses.replace(
            self,
            lengths=self.lengths.at[rows].set(other.lengths, mode="drop"),
            own=own,
            cross=cross,
            encoder_segments=segments,
        )


def _inserted(part: str, old: Any, rows: jax.Array, new: Any, *, repeat: int = 0) -> Any:
    """Returns the arrays of a part with some rows replaced.

    Args:
      part: of a `StackCache`, which determines the batch axis; "" for axis 0.
      repeat: repeats of each new row; above 0, shorter arrays are padded.
    """
    axis = batch_axis(part)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        if repeat > 1:
            new = jnp.repeat(new, repeat, axis=axis)
        short = [ours - theirs for ours, theirs in zip(old.shape, new.shape, strict=True)]
        short[axis] = 0
        if any(short) and not repeat:
            raise InputError(
                f"rows of a cache of shape {list(new.shape)}: this one is {list(old.shape)}; "
                "give both the same cache_length"
            )
        new = jnp.pad(new, [(0, size) for size in short]).astype(old.dtype)
        return jnp.asarray(old).at[(slice(None),) * axis + (rows,)].set(new, mode="drop")

    return jax.tree.map(put, old, new)
