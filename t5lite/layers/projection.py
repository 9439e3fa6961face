"""The one linear projection, with named axes."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from t5lite.layers import gradients
from t5lite.layers.gradients import Weight, reduce_scatter_over_batch
from t5lite.layers.initializers import Initializer, Initializers


class _Product(NamedTuple):
    """What of a product is static."""

    num_contracted: int
    dtype: Any
    precision: lax.Precision | None
    weight: Weight
    features_first: bool
    kernel_dtype: Any

    def axes(self, kernel: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the kernel's contracted axes and its features'."""
        at = kernel.ndim - self.num_contracted if self.features_first else self.num_contracted
        first, last = tuple(range(at)), tuple(range(at, kernel.ndim))
        return (last, first) if self.features_first else (first, last)


def product(
    x: jax.Array,
    kernel: jax.Array,
    *,
    num_contracted: int = 1,
    dtype: Any,
    precision: lax.Precision | None = None,
    weight: Weight = Weight(),
    features_first: bool = False,
) -> jax.Array:
    """Contracts the last axes of `x` with the first ones of `kernel`, in the dtype of `x`.

    Its derivative is written out. The kernel's gradient, a sum over all rows, stays in float32
    where the kernel is float32, and it comes out as the kernel lies in memory: what JAX derives is
    its transpose, for which XLA moves both factors on CPUs. For this there is no forward-mode
    differentiation; products with a Hessian are two reverse passes.

    Args:
      x: `[..., *contracted]`, any float dtype.
      kernel: `[*contracted, *features]`, any float dtype; it is rounded to that of `x`.
      num_contracted: how many axes are contracted.
      dtype: of the result; sums are rounded to it once.
      precision: of the factors, in both passes; None for the platform's own.
      weight: how the kernel is gathered and where its gradient goes.
      features_first: whether the kernel is `[*features, *contracted]`.

    Returns:
      `[..., *features]`.
    """
    static = _Product(num_contracted, dtype, precision, weight, features_first, kernel.dtype)
    return _product(x, kernel, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, static: _Product) -> jax.Array:
    return _product_forward(x, kernel, static)[0]


def _product_forward(
    x: jax.Array, kernel: jax.Array, static: _Product
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    kernel = static.weight.used(kernel, x.dtype)
    contracted = tuple(range(x.ndim - static.num_contracted, x.ndim)), static.axes(kernel)[0]
    y = lax.dot_general(
        x,
        kernel,
        (contracted, ((), ())),
        precision=static.precision,
        preferred_element_type=static.dtype,
    )
    return y, (x, kernel)


def _product_backward(
    static: _Product, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    num_rows = x.ndim - static.num_contracted
    features = tuple(range(num_rows, gradient.ndim)), static.axes(kernel)[1]
    rows = tuple(range(num_rows)), tuple(range(num_rows))
    dot = functools.partial(lax.dot_general, precision=static.precision)
    d_x = dot(gradient, kernel, (features, ((), ())), preferred_element_type=x.dtype)

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        factors = (gradient, x) if static.features_first else (x, gradient)
        return dot(*factors, (rows, ((), ())), preferred_element_type=jnp.float32)

    d_kernel = reduce_scatter_over_batch(
        of_kernel, (x, gradient), static.weight.gradient, dtype=x.dtype
    )
    return d_x, d_kernel.astype(static.kernel_dtype)


_product.defvjp(_product_forward, _product_backward)


class Projection(nn.Module):
    """Maps the last axes of its input onto new ones, and adds a bias if asked to.

    Args:
      axes: the kernel's logical axis names, contracted ones first.
      features: sizes of the new axes.
      num_contracted: how many trailing axes of the input are contracted.
      dtype: of the computation; parameters are float32.
      kernel_init: of the kernel, drawn as a matrix `[contracted, features]`.
      use_bias: whether a bias is added, initially 0, whose axes are the kernel's new ones.
      float32_output: whether sums stay in float32 rather than being rounded to `dtype`.
      precision: of the factors, see `product`.
    """

    axes: tuple[str, ...]
    features: tuple[int, ...]
    num_contracted: int
    dtype: jnp.dtype
    kernel_init: Callable[..., jax.Array]
    use_bias: bool
    float32_output: bool
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, axes = self.num_contracted, self.axes

        def drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            matrix = math.prod(shape[:n]), math.prod(shape[n:])
            return self.kernel_init(key, matrix).reshape(shape)

        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(drawn, axes),
            (*x.shape[x.ndim - n :], *self.features),
        )
        y = product(
            x.astype(self.dtype),
            kernel,
            num_contracted=n,
            dtype=jnp.float32 if self.float32_output else self.dtype,
            precision=self.precision,
            weight=gradients.weight(
                axes, "attention_kernel" if {"heads", "shared_head"} & set(axes) else "kernel"
            ),
        )
        if not self.use_bias:
            return y
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[n:])
        bias: Any = self.param("bias", zeros, self.features)
        return y + gradients.broadcast(bias, y.shape, y.dtype)


def projection(
    axes: Sequence[str],
    features: Sequence[int],
    *,
    num_contracted: int = 1,
    dtype: jnp.dtype,
    init: Initializer = Initializers().kernel("dense"),
    use_bias: bool = False,
    float32_output: bool = False,
    precision: lax.Precision | None = None,
    name: str | None = None,
) -> Projection:
    """Returns a linear projection of the last axes onto `features`.

    Args:
      axes: the kernel's logical axis names, contracted ones first.
      features: sizes of the new axes.
      num_contracted: how many trailing axes of the input are contracted.
      dtype: of the computation; the kernel is float32.
      init: draws the kernel, flat: `[contracted, features]`.
      use_bias: whether a bias is added, initially 0, whose axes are the kernel's new ones.
      float32_output: whether sums stay in float32 rather than being rounded to `dtype`.
      precision: of the factors, see `product`.
      name: of the submodule.
    """
    return Projection(
        tuple(axes),
        tuple(features),
        num_contracted,
        dtype,
        init,
        use_bias,
        float32_output,
        precision,
        name=name,
    )
