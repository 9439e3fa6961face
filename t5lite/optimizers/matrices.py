"""Matrix views of parameters, so that how a parameter is stored does not change its update.

Layers are stored stacked and attention kernels as `[embed, heads, kv]`, but optimizers that look at
a whole matrix (its RMS, its row and column moments) must see one layer's two-dimensional kernel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5lite.errors import InputError

BATCH_AXES = frozenset({"layers", "stack", "experts"})
"""Logical axes along which independent parameters are stacked."""


class MatrixView(NamedTuple):
    """Positions of a parameter's axes by their part in the matrix.

    Args:
      inner: axes of one layer's parameter, all but the stacked ones.
      rows: axes of the rows; empty, as `columns`, if the parameter is not a matrix.
    """

    inner: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether there are rows and columns: not for scales, biases and relative-bias tables."""
        return bool(self.rows)


def matrix_view(names: PartitionSpec, shape: tuple[int, ...]) -> MatrixView:
    """Returns the matrix view of a parameter, which may be a stack of matrices.

    Stacked axes (`BATCH_AXES`) are set apart; `heads` (or a `shared_head`) followed by `kv` count
    as the one dimension they were split from. What remains is a matrix if it has two dimensions, or
    more of which exactly one is `embed`: that one against all others. A table over
    `relpos_buckets` is not a matrix.

    Axes beyond the `names`, or None, have no name; more names than axes are an InputError.
    """
    if len(names) > len(shape):
        raise InputError(
            f"axes = {names}: more names than a parameter of shape {shape} has axes", field="axes"
        )
    padded = [*names, *[None] * (len(shape) - len(names))]
    dimensions: list[tuple[int, ...]] = []
    for axis, name in enumerate(padded):
        if name == "kv" and axis > 0 and padded[axis - 1] in ("heads", "shared_head"):
            dimensions[-1] += (axis,)
        elif name not in BATCH_AXES:
            dimensions.append((axis,))
    inner = tuple(axis for dimension in dimensions for axis in dimension)
    rows: tuple[int, ...] = ()
    if "relpos_buckets" not in padded:
        embed = [dimension for dimension in dimensions if padded[dimension[0]] == "embed"]
        if len(dimensions) == 2:
            rows = dimensions[0]
        elif len(dimensions) > 2 and len(embed) == 1:
            rows = embed[0]
    columns = tuple(axis for axis in inner if axis not in rows) if rows else ()
    return MatrixView(inner, rows, columns)


def matrix_views(params: Any, axes: Any) -> Any:
    """Returns the tree of `params` (anything with a `shape`) with a `MatrixView` at each leaf.

    `axes` is the same tree with PartitionSpec leaves of logical names; None if nothing has a name.
    """
    if axes is None:
        axes = jax.tree.map(lambda _: PartitionSpec(), params)
    return jax.tree.map(lambda param, names: matrix_view(names, param.shape), params, axes)


def rms(x: jax.Array, view: MatrixView) -> jax.Array:
    """Returns the root mean square of each layer's float32 `x`, of size 1 along `view.inner`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=view.inner, keepdims=True))
