"""Keys and values of attention, and their slots in a decoding cache."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of one attention layer, `[batch, kv_length, kv_heads, kv]` each."""

    key: jax.Array
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of earlier steps, `[batch, kv_heads, size, kv]` each.

    A ring buffer: the token at position p is in slot `p % size`, so that windowed layers need few
    slots. Heads come first, as a step reads all slots of a head. Stacked layers have a leading
    axis.
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def of(cls, kv: KeyValues) -> "Slots":
        """Returns slots that hold `kv`, in order."""
        return cls(jnp.swapaxes(kv.key, 1, 2), jnp.swapaxes(kv.value, 1, 2))

    @property
    def size(self) -> int:
        return self.key.shape[-2]

    def read(self) -> KeyValues:
        """Returns all slots, in order; see `positions`."""
        return KeyValues(jnp.swapaxes(self.key, 1, 2), jnp.swapaxes(self.value, 1, 2))

    def positions(self, newest: Int32[Array, " batch"]) -> Int32[Array, "batch {self.size}"]:
        """Returns the position in each slot, below 0 if empty; `newest` was written last."""
        slot = jnp.arange(self.size, dtype=jnp.int32)[None]
        newest = jnp.broadcast_to(newest[:, None], (newest.shape[0], self.size))
        return newest - (newest - jnp.broadcast_to(slot, newest.shape)) % jnp.int32(self.size)

    def fill(self, new: KeyValues, lengths: Int32[Array, " batch"]) -> "Slots":
        """Stores the last `size` of the first `lengths` tokens of each row; `new` has all from 0
        on."""
        size, length = self.size, new.key.shape[1]
        if length <= size:  # position p is in slot p, and padding is never seen

            def write(old: jax.Array, rows: jax.Array) -> jax.Array:
                rows = jnp.swapaxes(rows, 1, 2).astype(old.dtype)
                return jnp.pad(rows, ((0, 0), (0, 0), (0, size - length), (0, 0)))
        else:
            stored = jnp.maximum(self.positions(lengths - 1), 0)[:, :, None, None]

            def write(old: jax.Array, rows: jax.Array) -> jax.Array:
                rows = jnp.take_along_axis(rows, stored, axis=1)
                return jnp.swapaxes(rows, 1, 2).astype(old.dtype)

        return Slots(write(self.key, new.key), write(self.value, new.value))

    def append(self, new: KeyValues, positions: Int32[Array, "batch n"]) -> "Slots":
        """Writes `n` tokens a row over the oldest."""
        slots = positions % jnp.int32(self.size)
        rows = jnp.broadcast_to(jnp.arange(len(slots), dtype=jnp.int32)[:, None], slots.shape)
        if slots.size == 1:
            # With a second slot, beyond the end and dropped, XLA writes in place on CPUs; for a
            # single one it copies all slots.
            new = jax.tree.map(lambda array: jnp.concatenate([array, array], axis=1), new)
            slots = jnp.concatenate([slots, jnp.full_like(slots, self.size)], axis=1)
            rows = jnp.concatenate([rows, rows], axis=1)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(old.dtype)
            return old.at[rows, :, slots].set(new, unique_indices=True, mode="drop")

        return Slots(write(self.key, new.key), write(self.value, new.value))
