"""The one linear projection, with named axes and a fan-in initialiser."""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

_float32_dot_general = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


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
    distribution: Literal["truncated_normal", "normal"] = "truncated_normal",
    use_bias: bool = False,
    float32_output: bool = False,
    name: str | None = None,
) -> nn.DenseGeneral:
    """Returns a linear projection of the last axes onto `features`.

    A `DenseGeneral`, so that adapters and quantizers find every matrix of a model.

    Args:
      axes: the kernel's logical axis names, contracted ones first.
      features: sizes of the new axes.
      num_contracted: how many trailing axes of the input are contracted.
      dtype: of the computation; the kernel is float32.
      init_scale: factor on the initial standard deviation, which is 1/sqrt(fan-in).
      distribution: of the initial values.
      use_bias: whether a bias is added, initially 0, whose axes are the kernel's new ones.
      float32_output: whether sums stay in float32 rather than being rounded to `dtype`.
      name: of the submodule.
    """
    init = nn.initializers.variance_scaling(init_scale**2, "fan_in", distribution)
    return nn.DenseGeneral(
        tuple(features),
        axis=tuple(range(-num_contracted, 0)),
        use_bias=use_bias,
        dtype=dtype,
        dot_general=_float32_dot_general if float32_output else None,
        kernel_init=lambda *arguments: _Named(init(*arguments), tuple(axes)),
        bias_init=lambda *arguments: _Named(
            nn.initializers.zeros(*arguments), tuple(axes[num_contracted:])
        ),
        name=name,
    )
