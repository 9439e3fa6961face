"""Token embeddings, and the logits that may share their table."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        embedded = jnp.take(table, tokens, axis=0)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))

    def attend(self, x: jax.Array) -> jax.Array:
        """Dots `x` `[batch, length, embed]` with every row: `[batch, length, vocab]` float32."""
        table = self.embedding.astype(self.dtype)
        return jnp.einsum("ble,ve->blv", x, table, preferred_element_type=jnp.float32)
