"""Keys and values, and how a decoding cache appends to them."""

import dataclasses

import jax
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of one attention layer (or of a stack of layers, on a leading axis).

    Args:
      key: `[batch, kv_length, kv_heads, kv]`.
      value: `[batch, kv_length, kv_heads, kv]`.
    """

    key: jax.Array
    value: jax.Array

    def append(self, new: "KeyValues", lengths: jax.Array) -> "KeyValues":
        """Writes `new` behind the first `lengths` entries of each row.

        Args:
          new: `n` further keys and values a row.
          lengths: `[batch]` int32, entries already there; `lengths + n` must fit.

        Returns:
          The same shape as `self`.
        """

        def write(old: jax.Array, rows: jax.Array) -> jax.Array:
            update = jax.vmap(lambda o, r, at: lax.dynamic_update_slice(o, r, (at, 0, 0)))
            return update(old, rows.astype(old.dtype), lengths)

        return KeyValues(write(self.key, new.key), write(self.value, new.value))
