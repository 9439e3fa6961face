"""The one linear projection, with named axes and a fan-in initialiser."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class _Named(nn.LogicallyPartitioned):
    """A kernel with its axes' names, which `DenseGeneral` draws flat and then unfolds.

    While it is flat its names do not fit, so no sharding can be asked for yet.
    """

    def unbox(self, apply_constraint: bool = True) -> jax.Array:
        return super().unbox(apply_constraint and self.value.ndim == len(self.names))


def projection(
    axes: Sequence[str],
    features: Sequence[int],
    *,
    num_contracted: int = 1,
    dtype: jnp.dtype,
    init_scale: float = 1.0,
    name: str | None = None,
) -> nn.DenseGeneral:
    """Returns a bias-free projection of the last axes onto `features`.

    A `DenseGeneral`, so that adapters and quantizers find every matrix of a model.

    Args:
      axes: the kernel's logical axis names, contracted ones first.
      features: sizes of the new axes.
      num_contracted: how many trailing axes of the input are contracted.
      dtype: of the computation; the kernel is float32.
      init_scale: factor on the standard deviation, which is 1/sqrt(fan-in) (truncated normal).
      name: of the submodule.
    """
    init = nn.initializers.variance_scaling(init_scale**2, "fan_in", "truncated_normal")
    return nn.DenseGeneral(
        tuple(features),
        axis=tuple(range(-num_contracted, 0)),
        use_bias=False,
        dtype=dtype,
        kernel_init=lambda *arguments: _Named(init(*arguments), tuple(axes)),
        name=name,
    )
