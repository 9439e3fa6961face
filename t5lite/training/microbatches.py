"""Microbatches: parts of a batch computed one after the other, to save memory."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def sum_over_microbatches(
    fn: Callable[[Mapping[str, jax.Array], jax.Array], Any],
    batch: Mapping[str, jax.Array],
    num_microbatches: int,
) -> Any:
    """Returns the sum of `fn(part, index)` over the parts of a batch.

    Args:
      fn: `(part, index) -> tree of arrays`, with `[batch / num_microbatches, ...]` arrays and an
        int32 scalar.
      batch: `[batch, ...]` arrays by name.
      num_microbatches: divides the batch.
    """

    def add(total: Any, part_and_index: tuple) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, fn(*part_and_index)), None

    parts = jax.tree.map(lambda rows: _split_rows(rows, num_microbatches), dict(batch))
    shapes = jax.eval_shape(fn, jax.tree.map(lambda rows: rows[0], parts), jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    indices = jnp.arange(num_microbatches, dtype=jnp.int32)
    return lax.scan(add, zeros, (parts, indices))[0]


def _split_rows(rows: jax.Array, num_parts: int) -> jax.Array:
    """`[batch, …]` to `[num_parts, batch / num_parts, …]`, every device keeping its own rows."""
    batch, *rest = rows.shape
    return jnp.moveaxis(rows.reshape(batch // num_parts, num_parts, *rest), 1, 0)
