"""The one linear projection, with named axes and a fan-in initialiser."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from t5lite.layers.gradients import Spread, spread, summed_over_rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(
    x: jax.Array,
    kernel: jax.Array,
    num_contracted: int,
    dtype: Any,
    spread: Spread | None = None,
) -> jax.Array:
    """Contracts the last axes of `x` with the first ones of `kernel`.

    Its derivative is written out, so that the kernel's gradient comes out as the kernel lies in
    memory: what JAX derives is its transpose, for which XLA moves both factors on CPUs. For this
    there is no forward-mode differentiation; products with a Hessian are two reverse passes.

    Args:
      x: `[..., *contracted]`, any float dtype.
      kernel: `[*contracted, *features]`, of the same dtype.
      num_contracted: how many axes are contracted.
      dtype: of the result; sums are rounded to it once.
      spread: where the kernel's gradient goes.

    Returns:
      `[..., *features]`.
    """
    del spread
    contracted = tuple(range(x.ndim - num_contracted, x.ndim)), tuple(range(num_contracted))
    return lax.dot_general(x, kernel, (contracted, ((), ())), preferred_element_type=dtype)


def _product_forward(
    x: jax.Array, kernel: jax.Array, num_contracted: int, dtype: Any, spread: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del spread
    return product(x, kernel, num_contracted, dtype), (x, kernel)


def _product_backward(
    num_contracted: int,
    dtype: Any,
    spread: Spread | None,
    kept: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    del dtype
    x, kernel = kept
    num_rows = x.ndim - num_contracted
    features = (
        tuple(range(num_rows, gradient.ndim)),
        tuple(range(num_contracted, kernel.ndim)),
    )
    rows = tuple(range(num_rows)), tuple(range(num_rows))
    d_x = lax.dot_general(gradient, kernel, (features, ((), ())), preferred_element_type=x.dtype)

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return lax.dot_general(x, gradient, (rows, ((), ())), preferred_element_type=kernel.dtype)

    return d_x, summed_over_rows(of_kernel, (x, gradient), spread)


product.defvjp(_product_forward, _product_backward)


def _dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    *,
    dtype: Any,
    axes: tuple[str, ...],
    precision: Any = None,
    **options: Any,
) -> jax.Array:
    """`product` in the place of `lax.dot_general`, for `DenseGeneral`, whose sums it is."""
    del precision, options
    (x_axes, kernel_axes), batch = dimension_numbers
    n = len(x_axes)
    assert x_axes == tuple(range(x.ndim - n, x.ndim))
    assert kernel_axes == tuple(range(n))
    assert not any(batch)
    if jax.sharding.get_abstract_mesh().size > 1:
        # Gathered over what only its storage is spread over, by name, so that a policy of
        # rematerialisation may keep it rather than have it sent again.
        kernel = checkpoint_name(
            nn.with_logical_constraint(kernel, axes),
            "attention_kernel" if {"heads", "shared_head"} & set(axes) else "kernel",
        )
    return product(x, kernel, n, dtype, spread(axes))


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
        dot_general=functools.partial(
            _dot_general, dtype=jnp.float32 if float32_output else dtype, axes=tuple(axes)
        ),
        kernel_init=lambda *arguments: _Named(init(*arguments), tuple(axes)),
        bias_init=lambda *arguments: _Named(
            nn.initializers.zeros(*arguments), tuple(axes[num_contracted:])
        ),
        name=name,
    )
