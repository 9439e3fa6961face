"""Attention masks as rules, which kernels need rather than the matrix."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from t5lite.layers.cache import Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """The keys that each query sees; fields that are None do not restrict.

    Args:
      q_segments: `[batch or 1, q_length]` int32; a query sees the keys of its own segment.
      kv_segments: `[batch or 1, kv_length]` int32; 0 is padding, which no query sees.
      q_order: `[batch or 1, q_length]` int32, positions in the row, for `causal` and `window`.
      kv_order: `[batch or 1, kv_length]` int32, positions of keys.
      q_prefix: `[batch or 1, q_length]` bool; with `kv_prefix`, queries and keys of a prefix see
        each other in both directions.
      kv_prefix: `[batch or 1, kv_length]` bool.
      causal: whether a query sees no keys after its own position.
      window: see `AttentionSpec`; a causal query sees `window + 1` keys, its own included.
      self_attention: whether queries and keys are the same whole rows, in order.
    """

    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    q_order: jax.Array | None = None
    kv_order: jax.Array | None = None
    q_prefix: jax.Array | None = None
    kv_prefix: jax.Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    self_attention: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def within(
        cls,
        segments: Int32[Array, "batch length"],
        *,
        causal: bool,
        prefix: Bool[Array, "batch length"] | None = None,
    ) -> "AttentionMask":
        """Returns the mask of self-attention over whole rows; see the fields of `AttentionMask`."""
        order = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
        return cls(
            segments, segments, order, order, prefix, prefix, causal=causal, self_attention=True
        )

    @classmethod
    def over_slots(cls, positions: Int32[Array, "batch n"], slots: Slots) -> "AttentionMask":
        """Returns the mask of causal self-attention over a cache that holds the queries' keys."""
        order = slots.positions(positions[:, -1])
        never = jnp.full_like(order, jnp.iinfo(jnp.int32).max // 2)  # later than any query
        return cls(q_order=positions, kv_order=jnp.where(order < 0, never, order), causal=True)

    def within_window(self, window: int | None) -> "AttentionMask":
        """Returns the mask with a window, unchanged for None."""
        return self if window is None else dataclasses.replace(self, window=window)

    def queries(self, start: Int32[Array, ""], size: int) -> "AttentionMask":
        """Returns the mask of `size` queries from index `start` on."""

        def part(array: jax.Array | None) -> jax.Array | None:
            return None if array is None else lax.dynamic_slice_in_dim(array, start, size, axis=1)

        return dataclasses.replace(
            self,
            q_segments=part(self.q_segments),
            q_order=part(self.q_order),
            q_prefix=part(self.q_prefix),
            self_attention=False,
        )

    def array(self) -> Bool[Array, "batch_or_1 1 q_length_or_1 kv_length"] | None:
        """Returns which keys each query sees, True for seen; None if all of them are."""
        seen = None
        if self.kv_segments is not None:
            seen = (self.kv_segments > 0)[:, None]
            if self.q_segments is not None:
                seen = seen & (self.q_segments[:, :, None] == self.kv_segments[:, None])
        if self.causal:
            ordered = self._distance() >= 0
            if self.q_prefix is not None and self.kv_prefix is not None:
                ordered = ordered | (self.q_prefix[:, :, None] & self.kv_prefix[:, None])
            seen = ordered if seen is None else seen & ordered
        if self.window is not None:
            within = jnp.abs(self._distance()) <= self.window
            seen = within if seen is None else seen & within
        return None if seen is None else seen[:, None]

    def _distance(self) -> Int32[Array, "batch_or_1 q_length kv_length"]:
        assert self.q_order is not None, "causal and windowed masks need an order"
        assert self.kv_order is not None
        return self.q_order[:, :, None] - self.kv_order[:, None]
