"""What each row has written so far: all that a rule about the next token may depend on."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """The tokens behind each row's prompt.

    Args:
      tokens: `[rows, room]` int32; what stands at and behind `lengths` means nothing.
      lengths: `[rows]` int32, tokens written.
      prompts: `[rows, n]` int32, what the decoder has read before, -1 where there is no token; None
        where nobody asks for it.
    """

    tokens: jax.Array
    lengths: jax.Array
    prompts: jax.Array | None = None

    @classmethod
    def empty(
        cls, rows: int, room: int, *, pad_id: int = 0, prompts: jax.Array | None = None
    ) -> "Written":
        """Returns nothing written yet, with room for `room` tokens a row."""
        return cls(jnp.full((rows, room), pad_id, jnp.int32), jnp.zeros(rows, jnp.int32), prompts)

    @property
    def inside(self) -> jax.Array:
        """`[rows, room]` bool, where a token has been written."""
        places = jnp.arange(self.tokens.shape[1], dtype=jnp.int32)[None]
        return jnp.broadcast_to(places, self.tokens.shape) < self.lengths[:, None]

    def text(self, *, before: jax.Array | None = None) -> jax.Array:
        """Returns `[rows, n]` int32: `before` `[rows, m]`, the prompts and what is written, without
        gaps, its end on the right and -1 on the left of it."""
        parts = [part for part in (before, self.prompts) if part is not None]
        text = jnp.concatenate([*parts, jnp.where(self.inside, self.tokens, -1)], axis=1)
        behind = jnp.cumsum((text >= 0)[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
        places = jnp.where(text >= 0, text.shape[1] - behind, text.shape[1])
        rows = jnp.broadcast_to(jnp.arange(len(text), dtype=jnp.int32)[:, None], text.shape)
        return jnp.full_like(text, -1).at[rows, places].set(text, mode="drop")

    def append(self, tokens: jax.Array, where: jax.Array | bool = True) -> "Written":
        """Writes one token a row.

        Args:
          tokens: `[rows]` int32.
          where: `[rows]` bool, rows that write; the others stay as they are.
        """
        where = jnp.broadcast_to(jnp.asarray(where), tokens.shape)
        rows = jnp.arange(len(tokens), dtype=jnp.int32)
        places = jnp.where(where, self.lengths, self.tokens.shape[1])  # where nothing is written
        return dataclasses.replace(
            self,
            tokens=self.tokens.at[rows, places].set(tokens, mode="drop", unique_indices=True),
            lengths=self.lengths + where.astype(jnp.int32),
        )

    def take(self, rows: jax.Array) -> "Written":
        """Row i becomes what row `rows[i]` was, `rows` `[rows]` int32."""
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), self)
