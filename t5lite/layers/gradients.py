"""Gradients of parameters, spread over devices as soon as they are there."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from t5lite.layers.kernels.request import mesh_axes


class Spread(NamedTuple):
    """Where a gradient's parts are and where their sum goes; `spread` makes it.

    Attributes:
      batch: the mesh axes that rows are spread over.
      axes: of each of the gradient's axes, the mesh axes among `batch` that its sum is spread over.
    """

    batch: tuple[str, ...]
    axes: tuple[tuple[str, ...], ...]


def spread(axes: Sequence[str]) -> Spread | None:
    """Returns how the layout in force spreads the gradient of a parameter with these axes' names.

    It is asked where the parameter is used: the rules of a derivative may be others.

    Args:
      axes: the parameter's logical axis names.

    Returns:
      None where the sum is spread over no axis that rows are spread over.
    """
    batch = mesh_axes(("batch",))[0] or ()
    named = mesh_axes(tuple(f"gradient/{axis}" for axis in axes))
    over = tuple(over if over and set(over) <= set(batch) else () for over in named)
    return Spread(batch, over) if any(over) else None


def summed_over_rows(
    fn: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], spread: Spread | None
) -> jax.Array:
    """Returns `fn(*arrays)`, a parameter's gradient, as the layout spreads that gradient.

    Left to itself XLA adds the devices' parts up everywhere and throws most of the sum away: twice
    the bytes of what is done here, a reduce-scatter by name.

    Args:
      fn: adds something up over the rows of `arrays`.
      arrays: `[batch, ...]` each.
      spread: where the sum goes; None leaves it to XLA, and so do rows that do not divide.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if spread is None or any(
        array.shape[0] % math.prod(sizes[axis] for axis in spread.batch) for array in arrays
    ):
        return fn(*arrays)
    whole = tuple(axis for axis in spread.batch if not any(axis in over for over in spread.axes))

    def of_own_rows(*rows: jax.Array) -> jax.Array:
        total = fn(*rows)
        for at, over in enumerate(spread.axes):
            if over:
                total = _scattered(total, at, over)
        return lax.psum(total, whole) if whole else total

    return jax.shard_map(
        of_own_rows,
        in_specs=PartitionSpec(spread.batch),
        out_specs=PartitionSpec(*(over or None for over in spread.axes)),
        axis_names=set(spread.batch),
        check_vma=False,
    )(*arrays)


def _scattered(part: jax.Array, at: int, over: Sequence[str]) -> jax.Array:
    """Returns a device's share, along axis `at`, of the sum of all devices' parts.

    A TPU's compiler sends everything everywhere unless the parts are rows, of whole lanes, and
    their sum goes along one side of the slice after the other.
    """
    rows = jnp.moveaxis(part, at, 0)
    shape = rows.shape[1:]
    lanes = 128 if math.prod(shape) % 128 == 0 else 1
    rows = rows.reshape(rows.shape[0], -1, lanes)
    for axis in over:
        rows = lax.psum_scatter(rows, axis, scatter_dimension=0, tiled=True)
    return jnp.moveaxis(rows.reshape(-1, *shape), 0, at)
