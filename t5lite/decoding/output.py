"""The tokens generated so far, on which rules about the next token depend."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from t5lite.errors import InputError


class Rows:
    """Arrays by row. Metadata: `fill` pads shorter ones (0), `shared` is of all rows."""

    def insert(self, rows: Int32[Array, " n"], new: Self) -> Self:
        """Replaces whole rows, so that a request enters a running batch.

        Args:
          rows: `[n]` int32, the replaced rows; those out of range are dropped.
          new: of `n` rows, of the same structure and cache size, and of at most the same capacity,
            prompt length, encoder length and numbers of ids and texts.
        Raises: InputError if a size is larger.
        """
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            old, value = getattr(self, field.name), getattr(new, field.name)
            if old is None or value is None or {"static", "shared"} & field.metadata.keys():
                continue
            if hasattr(old, "insert"):
                changes[field.name] = old.insert(rows, value)
            else:
                fill = field.metadata.get("fill", 0)
                changes[field.name] = insert_rows(field.name, old, rows, value, fill=fill)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def filled(fill: int, default: Any = dataclasses.MISSING) -> Any:
    """Returns a field of `Rows` with a padding."""
    return dataclasses.field(default=default, metadata={"fill": fill})


def shared(default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"shared": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output(Rows):
    """The tokens after each row's prompt.

    Args:
      tokens: `[rows, capacity]` int32; entries at and after `lengths` have no meaning.
      lengths: `[rows]` int32, tokens generated.
      prompts: `[rows, n]` int32, tokens read before, -1 for none; None if no rule needs them.
    """

    tokens: jax.Array
    lengths: jax.Array
    prompts: jax.Array | None = filled(-1, None)

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
        positions = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None]
        return jnp.broadcast_to(positions, self.tokens.shape) < self.lengths[:, None]

    def text(self, *, before: Int32[Array, "rows m"] | None = None) -> Int32[Array, "rows n"]:
        """Returns `[rows, n]` int32: `before`, prompts and tokens without gaps, -1 in front."""
        parts = [part for part in (before, self.prompts) if part is not None]
        tokens = jnp.where(self.valid, self.tokens, -1)
        return align_right(jnp.concatenate([*parts, tokens], axis=1), -1)

    def append(
        self, tokens: Int32[Array, " rows"], going: Bool[Array, " rows"] | bool = True
    ) -> "Output":
        """Appends one token, of `tokens` `[rows]` int32, to each row that is `going` `[rows]`."""
        going = jnp.broadcast_to(jnp.asarray(going), tokens.shape)
        return dataclasses.replace(
            self,
            tokens=set_next(self.tokens, self.lengths, tokens, going),
            lengths=self.lengths + going.astype(jnp.int32),
        )


def set_next(array: jax.Array, lengths: jax.Array, values: jax.Array, going: jax.Array) -> Any:
    """Returns `array` with `values` `[rows, …]` at `lengths`, in rows that are `going` `[rows]`."""
    rows = jnp.arange(len(lengths), dtype=jnp.int32)
    positions = jnp.where(going, lengths, array.shape[1])  # out of range: dropped
    return array.at[rows, positions].set(values, mode="drop", unique_indices=True)


def align_right(values: jax.Array, padding: int) -> jax.Array:
    """Returns rows `[rows, n]` with the entries that are `padding` moved to the front."""
    valid = values != padding
    remaining = jnp.cumsum(valid[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
    positions = jnp.where(valid, values.shape[1] - remaining, values.shape[1])
    rows = jnp.broadcast_to(jnp.arange(len(values), dtype=jnp.int32)[:, None], values.shape)
    return jnp.full_like(values, padding).at[rows, positions].set(values, mode="drop")


def insert_rows(
    name: str, array: jax.Array, rows: jax.Array, new: jax.Array, *, fill: Any = 0
) -> jax.Array:
    """Replaces `rows` `[n]` of `array` by `new`, whose other axes are padded with `fill`; rows out
    of range are dropped. Raises an InputError naming `name` if an axis of `new` is longer."""
    array, new = jnp.asarray(array), jnp.asarray(new)
    sizes = [*zip(array.shape[1:], new.shape[1:], strict=True)]
    if any(size < needed for size, needed in sizes):
        raise InputError(
            f"{name} of shape {list(new.shape[1:])} a row: the running batch has room for "
            f"{list(array.shape[1:])}; start it with more"
        )
    padding = [(0, 0), *((0, size - needed) for size, needed in sizes)]
    if any(after for _, after in padding):
        new = jnp.pad(new, padding, constant_values=fill)
    new = new if new.dtype == array.dtype else new.astype(array.dtype)
    return array.at[rows].set(new, mode="drop")
