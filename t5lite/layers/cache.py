"""Keys and values of attention, and their slots in a decoding cache."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of one attention layer.

    Args:
      key: `[batch, kv_length, kv_heads, kv]`.
      value: `[batch, kv_length, kv_heads, kv]`.
    """

    key: jax.Array
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of earlier steps.

    A ring: the token at position p is in slot `p % size`, so that a layer that sees a window needs
    few of them, and one with a slot for every position is the same thing. Heads are outside, since
    a step reads all that a head has kept.

    Args:
      key: `[batch, kv_heads, size, kv]` (or of a stack of layers, on a leading axis).
      value: `[batch, kv_heads, size, kv]`.
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def of(cls, kv: KeyValues) -> "Slots":
        """Returns slots that hold just `kv`, each token at its place."""
        return cls(jnp.swapaxes(kv.key, 1, 2), jnp.swapaxes(kv.value, 1, 2))

    @property
    def size(self) -> int:
        return self.key.shape[-2]

    def read(self) -> KeyValues:
        """Returns all slots, in their order; see `positions` for what they hold."""
        return KeyValues(jnp.swapaxes(self.key, 1, 2), jnp.swapaxes(self.value, 1, 2))

    def positions(self, newest: Int32[Array, " batch"]) -> Int32[Array, "batch {self.size}"]:
        """Returns `[batch, size]` int32: the position each slot holds, below 0 where none.

        Args:
          newest: `[batch]` int32, the last position written.
        """
        slot = jnp.arange(self.size, dtype=jnp.int32)[None]
        newest = jnp.broadcast_to(newest[:, None], (newest.shape[0], self.size))
        return newest - (newest - jnp.broadcast_to(slot, newest.shape)) % jnp.int32(self.size)

    def fill(self, new: KeyValues, lengths: Int32[Array, " batch"]) -> "Slots":
        """Keeps the last `size` of the first `lengths` tokens of each row.

        Args:
          new: all tokens of the rows, from position 0 on.
          lengths: `[batch]` int32, the tokens to keep; those after them are padding.
        """
        size, length = self.size, new.key.shape[1]
        if length <= size:  # position p is in slot p, and padding is never seen

            def place(old: jax.Array, rows: jax.Array) -> jax.Array:
                rows = jnp.swapaxes(rows, 1, 2).astype(old.dtype)
                return jnp.pad(rows, ((0, 0), (0, 0), (0, size - length), (0, 0)))
        else:
            held = jnp.maximum(self.positions(lengths - 1), 0)[:, :, None, None]

            def place(old: jax.Array, rows: jax.Array) -> jax.Array:
                kept = jnp.take_along_axis(rows, held, axis=1)
                return jnp.swapaxes(kept, 1, 2).astype(old.dtype)

        return Slots(place(self.key, new.key), place(self.value, new.value))

    def append(self, new: KeyValues, positions: Int32[Array, "batch n"]) -> "Slots":
        """Writes further tokens over the oldest.

        Args:
          new: `n` keys and values a row.
          positions: `[batch, n]` int32, where they stand.
        """
        slots = positions % jnp.int32(self.size)
        rows = jnp.broadcast_to(jnp.arange(len(slots), dtype=jnp.int32)[:, None], slots.shape)
        if slots.size == 1:
            # A second one, beyond the end, which is dropped: what XLA makes of a single one copies
            # all slots on CPUs, where this is done in place.
            new = jax.tree.map(lambda array: jnp.concatenate([array, array], axis=1), new)
            slots = jnp.concatenate([slots, jnp.full_like(slots, self.size)], axis=1)
            rows = jnp.concatenate([rows, rows], axis=1)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(old.dtype)
            return old.at[rows, :, slots].set(new, unique_indices=True, mode="drop")

        return Slots(write(self.key, new.key), write(self.value, new.value))
