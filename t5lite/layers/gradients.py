"""Weights under a layout: gathered for use, their gradients reduce-scattered. Sums over a batch, of
10⁴ terms and more, are float32 within a device (bfloat16 stops growing at 256 equal terms); between
devices the dtype is `Layout.gradient_dtype`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from t5lite.layers.kernels.request import mesh_axes


class GradientSharding(NamedTuple):
    """The sharding of a gradient's partial sums and of their total.

    Attributes:
      batch: the mesh axes that rows are sharded over.
      axes: for each axis of the gradient, the mesh axes among `batch` that shard it.
      rounded: whether partial sums travel in the dtype of the computation.
    """

    batch: tuple[str, ...]
    axes: tuple[tuple[str, ...], ...]
    rounded: bool


class Weight(NamedTuple):
    """A weight's sharding under the current layout: static, and made by `weight` at the weight's
    use, since a derivative is traced under other rules.

    Attributes:
      gathered: the sharding for use; None with one device.
      name: by which rematerialisation policies save the gathered weight; None for none.
      gradient: None: the compiler sums the gradient, in float32.
    """

    gathered: PartitionSpec | None = None
    name: str | None = None
    gradient: GradientSharding | None = None

    def used(self, array: jax.Array, dtype: Any) -> jax.Array:
        """Returns the weight in the dtype of the computation, gathered over its storage's axes:
        rounded first, so that half of the bytes travel, and named for rematerialisation policies.
        """
        array = array.astype(dtype)
        if self.gathered is None:
            return array
        array = lax.with_sharding_constraint(array, self.gathered)
        return array if self.name is None else checkpoint_name(array, self.name)


def weight(axes: Sequence[str], name: str | None = None) -> Weight:
    """Returns the sharding of a weight with these logical axis names."""
    if jax.sharding.get_abstract_mesh().size <= 1 or not nn.get_logical_axis_rules():
        return Weight()
    gathered = nn.logical_to_mesh_axes(tuple(axes)) or PartitionSpec()
    batch, rounded = mesh_axes(("batch",))[0] or (), mesh_axes((ROUNDED,))[0] is not None
    named = mesh_axes(tuple(f"gradient/{axis}" for axis in axes))
    sharded = tuple(over if over and set(over) <= set(batch) else () for over in named)
    if not batch or not (any(sharded) or rounded):
        return Weight(gathered, name)
    return Weight(gathered, name, GradientSharding(batch, sharded, rounded))


# The logical axis of the mesh axes between which sums of gradients travel rounded.
ROUNDED = "gradient/rounded"


def reduce_scatter_over_batch(
    fn: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    sharding: GradientSharding | None,
    *,
    dtype: Any,
) -> jax.Array:
    """Returns `fn(*arrays)`, a weight's gradient, sharded by the layout.

    XLA alone would all-reduce the devices' partial sums and discard most of the total: twice the
    bytes of this reduce-scatter.

    Args:
      fn: sums over the rows of `arrays`, `[batch, ...]`, in float32.
      sharding: of the total; XLA chooses for None, and for rows that do not divide.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sharding is None or any(
        array.shape[0] % math.prod(sizes[axis] for axis in sharding.batch) for array in arrays
    ):
        return fn(*arrays)
    unsharded = tuple(
        axis for axis in sharding.batch if not any(axis in over for over in sharding.axes)
    )

    def local_sum(*rows: jax.Array) -> jax.Array:
        total = fn(*rows)
        total = total.astype(dtype) if sharding.rounded else total
        for at, over in enumerate(sharding.axes):
            if over:
                total = _scattered(total, at, over)
        total = lax.psum(total, unsharded) if unsharded else total
        return total.astype(jnp.float32)

    return jax.shard_map(
        local_sum,
        in_specs=PartitionSpec(sharding.batch),
        out_specs=PartitionSpec(*(over or None for over in sharding.axes)),
        axis_names=set(sharding.batch),
        check_vma=False,
    )(*arrays)


def _scattered(part: jax.Array, at: int, over: Sequence[str]) -> jax.Array:
    """Returns a device's shard, along axis `at`, of the sum of all devices' parts.

    XLA on TPUs turns a scatter into an all-reduce unless its operand is `[rows, n, 128]`, whole
    lanes, and each mesh axis is reduced by itself.
    """
    rows = jnp.moveaxis(part, at, 0)  # [scattered, ...]
    shape = rows.shape[1:]
    lanes = 128 if math.prod(shape) % 128 == 0 else 1
    rows = rows.reshape(rows.shape[0], -1, lanes)
    for axis in over:
        rows = lax.psum_scatter(rows, axis, scatter_dimension=0, tiled=True)
    return jnp.moveaxis(rows.reshape(-1, *shape), 0, at)


def broadcast(array: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Broadcasts an array of any float dtype, such as a bias; its gradient is summed in float32."""
    return _broadcast(array, tuple(shape), dtype, array.shape, array.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _broadcast(
    array: jax.Array, shape: tuple[int, ...], dtype: Any, own_shape: Any, own_dtype: Any
) -> jax.Array:
    return jnp.broadcast_to(array.astype(dtype), shape)


def _broadcast_forward(array: jax.Array, *static: Any) -> tuple[jax.Array, None]:
    return _broadcast(array, *static), None


def _broadcast_backward(
    shape: tuple[int, ...], dtype: Any, own_shape: Any, own_dtype: Any, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    own = (1,) * (len(shape) - len(own_shape)) + own_shape
    repeated = tuple(i for i, (n, size) in enumerate(zip(own, shape, strict=True)) if n < size)
    total = jnp.sum(gradient.astype(jnp.float32), axis=repeated)
    return (total.reshape(own_shape).astype(own_dtype),)


_broadcast.defvjp(_broadcast_forward, _broadcast_backward)
