"""Embeddings, and the logits that may share a table of theirs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from t5lite.layers.gradients import Weight, reduce_scatter_over_batch, weight
from t5lite.layers.initializers import Table
from t5lite.layers.projection import product
from t5lite.layers.weights import Matrix, Weights, declare


class _Lookup(NamedTuple):
    """The static arguments of a lookup."""

    dtype: Any
    table_shape: tuple[int, int]
    table_dtype: Any
    weight: Weight


def lookup(
    table: Float[Array, "rows embed"],
    ids: Int32[Array, "batch length"],
    dtype: Any,
    axes: tuple[str, str],
) -> Float[Array, "batch length embed"]:
    """Returns rows of a table, whose gradient is added up in float32.

    Args:
      table: `[rows, embed]`, any float dtype.
      ids: `[batch, length]` int32.
      dtype: of the result.
      axes: the table's logical axis names.

    Returns:
      `[batch, length, embed]`.
    """
    return _lookup(
        table, ids, _Lookup(dtype, (table.shape[0], table.shape[1]), table.dtype, weight(axes))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, ids: jax.Array, static: _Lookup) -> jax.Array:
    # Gathered over the shards of `embed` first: the rows that are looked up are sharded by batch,
    # and the partitioner would go from one to the other by replicating all of them.
    return jnp.take(static.weight.used(table, static.dtype), ids, axis=0)


def _lookup_forward(
    table: jax.Array, ids: jax.Array, static: _Lookup
) -> tuple[jax.Array, jax.Array]:
    return _lookup(table, ids, static), ids


def _lookup_backward(
    static: _Lookup, ids: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
    def of_table(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        # A row may be looked up 10⁴ times, the padding's or a type of token: see `gradients`.
        zeros = jnp.zeros(static.table_shape, jnp.float32)
        return zeros.at[ids].add(gradient.astype(jnp.float32))

    total = reduce_scatter_over_batch(
        of_table, (ids, gradient), static.weight.gradient, dtype=static.dtype
    )
    return total.astype(static.table_dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


class TokenEmbedding(nn.Module):
    """A `[vocab, embed]` table; rows are looked up, or dotted with (tied logits).

    Args:
      vocab: rows.
      embed: their width.
      dtype: of the result.
      weights: how the table is drawn, adapted and stored.
      table: what it is for, which `weights.init` goes by.
      axis: logical name of the rows.
    """

    vocab: int
    embed: int
    dtype: jnp.dtype
    weights: Weights = Weights()
    table: Table = "tokens"
    axis: str = "vocab"

    def setup(self) -> None:
        self.axes = (self.axis, "embed")
        self.embedding = declare(
            self,
            "embedding",
            self.weights,
            Matrix((self.vocab, self.embed), self.axes),
            init=self.weights.table(self.table),
            contracted=(-1,),
        )

    def __call__(
        self, tokens: Int32[Array, "batch length"]
    ) -> Float[Array, "batch length {self.embed}"]:
        """Looks up tokens."""
        return nn.with_logical_constraint(self.rows(tokens), ("batch", "length", "embed"))

    def rows(self, ids: Int32[Array, "batch length"]) -> Float[Array, "batch length {self.embed}"]:
        """Returns rows of the table, wherever the layout has them."""
        table = self.embedding

        def looked_up(ids: jax.Array) -> jax.Array:
            if table.storage is None:
                return lookup(table.leaves, ids, self.dtype, self.axes)
            rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table.leaves)
            return table.storage.decode(rows, self.dtype)

        adapted: Callable[[jax.Array], jax.Array] = looked_up
        for adapter, leaves in table.adapters:
            adapted = functools.partial(adapter.lookup, leaves, inner=adapted)
        return adapted(ids)

    def attend(
        self, x: Float[Array, "batch length {self.embed}"]
    ) -> Float32[Array, "batch length {self.vocab}"]:
        """Dots `x` with every row: tied logits."""
        adapted: Callable[[jax.Array], jax.Array] = functools.partial(
            product,
            kernel=self.embedding.decoded(self.dtype),
            dtype=jnp.float32,
            weight=weight(self.axes),
            features_first=True,
        )
        for adapter, leaves in self.embedding.adapters:
            adapted = functools.partial(adapter.attend, leaves, inner=adapted)
        return adapted(x.astype(self.dtype))
