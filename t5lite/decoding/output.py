"""Tokens generated so far: all that a rule about the next token may depend on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from t5lite.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """The tokens after each row's prompt.

    Args:
      tokens: `[rows, capacity]` int32; entries at and after `lengths` have no meaning.
      lengths: `[rows]` int32, tokens generated.
      prompts: `[rows, n]` int32, tokens that the decoder read before, -1 for none; None where no
        rule needs them.
    """

    tokens: jax.Array
    lengths: jax.Array
    prompts: jax.Array | None = None

    @classmethod
    def empty(
        cls, rows: int, capacity: int, *, pad_id: int = 0, prompts: jax.Array | None = None
    ) -> "Output":
        """Returns rows without tokens, for at most `capacity` of them."""
        tokens = jnp.full((rows, capacity), pad_id, jnp.int32)
        return cls(tokens, jnp.zeros(rows, jnp.int32), prompts)

    @property
    def valid(self) -> Bool[Array, "rows capacity"]:
        """`[rows, capacity]` bool, entries that hold a token."""
        places = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None]
        return jnp.broadcast_to(places, self.tokens.shape) < self.lengths[:, None]

    def text(self, *, before: Int32[Array, "rows m"] | None = None) -> Int32[Array, "rows n"]:
        """Returns `[rows, n]` int32: `before` `[rows, m]`, the prompts and the tokens, without
        gaps, aligned to the right with -1 in front."""
        parts = [part for part in (before, self.prompts) if part is not None]
        tokens = jnp.where(self.valid, self.tokens, -1)
        return align_right(jnp.concatenate([*parts, tokens], axis=1), -1)

    def append(
        self, tokens: Int32[Array, " rows"], where: Bool[Array, " rows"] | bool = True
    ) -> "Output":
        """Appends one token a row.

        Args:
          tokens: `[rows]` int32.
          where: `[rows]` bool, rows that get one; the others stay as they are.
        """
        where = jnp.broadcast_to(jnp.asarray(where), tokens.shape)
        return dataclasses.replace(
            self,
            tokens=set_next(self.tokens, self.lengths, tokens, where),
            lengths=self.lengths + where.astype(jnp.int32),
        )

    def insert(self, rows: Int32[Array, " n"], new: "Output") -> "Output":
        """Replaces whole rows; see `State.insert`."""
        prompts = self.prompts
        if prompts is not None and new.prompts is not None:
            prompts = insert_rows("prompts", prompts, rows, new.prompts, fill=-1)
        return Output(
            insert_rows("tokens", self.tokens, rows, new.tokens, fill=0),
            insert_rows("lengths", self.lengths, rows, new.lengths),
            prompts,
        )


def set_next(array: jax.Array, lengths: jax.Array, values: jax.Array, where: jax.Array) -> Any:
    """Returns `array` `[rows, capacity, …]` with `values` `[rows, …]` at `lengths` `[rows]`, in the
    rows where `where` `[rows]` is true."""
    rows = jnp.arange(len(lengths), dtype=jnp.int32)
    places = jnp.where(where, lengths, array.shape[1])  # out of range: dropped
    return array.at[rows, places].set(values, mode="drop", unique_indices=True)


def align_right(values: jax.Array, nothing: int) -> jax.Array:
    """Returns rows `[rows, n]` without the entries that are `nothing`, which fill up the front."""
    valid = values != nothing
    behind = jnp.cumsum(valid[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
    places = jnp.where(valid, values.shape[1] - behind, values.shape[1])
    rows = jnp.broadcast_to(jnp.arange(len(values), dtype=jnp.int32)[:, None], values.shape)
    return jnp.full_like(values, nothing).at[rows, places].set(values, mode="drop")


def insert_rows(
    name: str, array: jax.Array, rows: jax.Array, new: jax.Array, *, fill: Any = 0
) -> jax.Array:
    """Returns `array` with `new` in place of some rows.

    Args:
      name: of the array, for the error.
      array: `[rows, …]`.
      rows: `[n]` int32, where the new rows go; those out of range are dropped.
      new: `[n, …]`, whose other axes are padded to those of `array` with `fill`.

    Raises:
      InputError: an axis of `new` that is longer than that of `array`.
    """
    array, new = jnp.asarray(array), jnp.asarray(new)
    if any(ours < theirs for ours, theirs in zip(array.shape[1:], new.shape[1:], strict=True)):
        raise InputError(
            f"{name} of shape {list(new.shape[1:])} a row: the running batch has room for "
            f"{list(array.shape[1:])}; start it with more"
        )
    sizes = zip(array.shape[1:], new.shape[1:], strict=True)
    padding = [(0, 0), *((0, ours - theirs) for ours, theirs in sizes)]
    if any(after for _, after in padding):
        new = jnp.pad(new, padding, constant_values=fill)
    return array.at[rows].set(new.astype(array.dtype), mode="drop")
