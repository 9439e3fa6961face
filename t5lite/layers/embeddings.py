"""Embeddings, and the logits that may share their table."""

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
    """Returns rows of a table of any float dtype in `dtype`; its gradient is summed in float32."""
    shape = table.shape[0], table.shape[1]
    return _lookup(table, ids, _Lookup(dtype, shape, table.dtype, weight(axes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, ids: jax.Array, static: _Lookup) -> jax.Array:
    # Gathered over the shards of `embed` first: the looked-up rows are sharded by batch, and the
    # partitioner would reshard by replicating all of them.
    return jnp.take(static.weight.used(table, static.dtype), ids, axis=0)


def _lookup_forward(
    table: jax.Array, ids: jax.Array, static: _Lookup
) -> tuple[jax.Array, jax.Array]:
    return _lookup(table, ids, static), ids


def _lookup_backward(
    static: _Lookup, ids: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, None]:
    def of_table(ids: jax.Array, gradient: jax.Array) -> jax.Array:
        # A row may be looked up 10⁴ times, e.g. the padding's: see `gradients`.
        zeros = jnp.zeros(static.table_shape, jnp.float32)
        return zeros.at[ids].add(gradient.astype(jnp.float32))

    total = reduce_scatter_over_batch(
        of_table, (ids, gradient), static.weight.gradient, dtype=static.dtype
    )
    return total.astype(static.table_dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


class TokenEmbedding(nn.Module):
    """A `[vocab, embed]` table, looked up or multiplied (tied logits).

    Attributes:
      dtype: of the result.
      table: its use, which chooses the initializer.
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
            init=self.weights.init.table(self.table),
            contracted=(-1,),
        )

    def __call__(
        self, tokens: Int32[Array, "batch length"]
    ) -> Float[Array, "batch length {self.embed}"]:
        return nn.with_logical_constraint(self.rows(tokens), ("batch", "length", "embed"))

    def rows(self, ids: Int32[Array, "batch length"]) -> Float[Array, "batch length {self.embed}"]:
        """Returns rows of the table, in any sharding."""
        table = self.embedding

        def plain(ids: jax.Array) -> jax.Array:
            if table.storage is None:
                return lookup(table.leaves, ids, self.dtype, self.axes)
            rows = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table.leaves)
            return table.storage.decode(rows, self.dtype)

        adapted: Callable[[jax.Array], jax.Array] = plain
        for adapter, leaves in table.adapters:
            adapted = functools.partial(adapter.lookup, leaves, inner=adapted)
        return adapted(ids)

    def attend(
        self, x: Float[Array, "batch length {self.embed}"]
    ) -> Float32[Array, "batch length {self.vocab}"]:
        """Returns the products of `x` with every row: tied logits."""
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
