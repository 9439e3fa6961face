"""Token embeddings, and the logits that may share their table."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5lite.layers.gradients import Spread, spread, summed_over_rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: jax.Array, tokens: jax.Array, spread: Spread | None = None) -> jax.Array:
    """Returns the rows `[batch, length, embed]` of a `[vocab, embed]` table.

    Args:
      table: any float dtype.
      tokens: `[batch, length]` int32.
      spread: where the table's gradient goes.
    """
    del spread
    return jnp.take(table, tokens, axis=0)


def _lookup_forward(
    table: jax.Array, tokens: jax.Array, spread: Spread | None
) -> tuple[jax.Array, tuple]:
    del spread
    return lookup(table, tokens), (jnp.zeros((0, *table.shape), table.dtype), tokens)


def _lookup_backward(
    spread: Spread | None, kept: tuple, gradient: jax.Array
) -> tuple[jax.Array, None]:
    (_, vocab, embed), dtype = kept[0].shape, kept[0].dtype

    def of_table(tokens: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.zeros((vocab, embed), dtype).at[tokens].add(gradient)

    return summed_over_rows(of_table, (kept[1], gradient), spread), None


lookup.defvjp(_lookup_forward, _lookup_backward)


class TokenEmbedding(nn.Module):
    """A `[vocab, embed]` table; rows are looked up, or dotted with (tied logits)."""

    vocab: int
    embed: int
    dtype: jnp.dtype
    init_stddev: float = 1.0

    def setup(self) -> None:
        init = nn.with_logical_partitioning(
            nn.initializers.normal(self.init_stddev), ("vocab", "embed")
        )
        self.embedding: Any = self.param("embedding", init, (self.vocab, self.embed))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Looks up `tokens` `[batch, length]` int32, giving `[batch, length, embed]`."""
        # Gathered over the shards of `embed` first: the rows that are looked up are sharded by
        # batch, and the partitioner would go from one to the other by replicating all of them.
        table = nn.with_logical_constraint(self.embedding.astype(self.dtype), ("vocab", "embed"))
        embedded = lookup(table, tokens, spread(("vocab", "embed")))
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))

    def attend(self, x: jax.Array) -> jax.Array:
        """Dots `x` `[batch, length, embed]` with every row: `[batch, length, vocab]` float32."""
        table = self.embedding.astype(self.dtype)
        return jnp.einsum("ble,ve->blv", x, table, preferred_element_type=jnp.float32)
