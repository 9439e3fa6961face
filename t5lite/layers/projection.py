"""The linear map of every weight matrix, and its product with a derivative written out."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from t5lite.layers import gradients
from t5lite.layers.gradients import Weight, reduce_scatter_over_batch
from t5lite.layers.initializers import Role
from t5lite.layers.weights import Affine, Matrix, Weights, declare


class _Product(NamedTuple):
    """The static arguments of a product."""

    num_contracted: int
    dtype: Any
    precision: lax.Precision | None
    weight: Weight
    features_first: bool
    kernel_dtype: Any

    def axes(self, kernel: jax.Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
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

    Its derivative is written out: the gradient of a float32 kernel, a sum over all rows, stays in
    float32 and has the kernel's memory layout. (JAX derives its transpose, for which XLA moves both
    factors on CPUs.) So there is no forward-mode differentiation; Hessian products are two reverse
    passes.

    Args:
      x: `[..., *contracted]`, any float dtype.
      kernel: `[*contracted, *features]`, any float dtype; it is rounded to that of `x`.
      dtype: of the result; sums are rounded to it once.
      precision: of the factors, in both passes; None for the platform's default.
      weight: how the kernel is gathered and its gradient sharded.
      features_first: whether the kernel is `[*features, *contracted]`.
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
    static: _Product, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
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
    """The linear map of every weight matrix: contracts the last `num_contracted` axes of its input.

    The kernel is `[*contracted, *features]` float32, drawn as `[in, out]`; `weights` draws, adapts
    and stores it by its path.

    Attributes:
      axes: the kernel's logical axis names, contracted ones first.
      features: sizes of the new axes.
      dtype: of the computation.
      role, gain: see `InitSpec.kernel`.
      use_bias: whether a bias `[*features]`, initially 0, is added.
      float32_output: whether sums stay in float32 rather than being rounded to `dtype`.
    """

    axes: tuple[str, ...]
    features: tuple[int, ...]
    weights: Weights
    dtype: jnp.dtype
    role: Role = "dense"
    num_contracted: int = 1
    gain: float = 1.0
    use_bias: bool = False
    float32_output: bool = False
    precision: lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        n, axes = self.num_contracted, self.axes
        matrix = Matrix((*x.shape[x.ndim - n :], *self.features), axes, n)
        init = self.weights.kernel(self.role, self.gain)

        def flat(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return init(key, (math.prod(shape[:n]), math.prod(shape[n:])), dtype).reshape(shape)

        declared = declare(
            self,
            "kernel",
            self.weights,
            matrix,
            init=flat,
            contracted=range(-len(axes), n - len(axes)),
        )
        kernel = declared.decoded(self.dtype)
        bias: Any = None
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[n:])
            bias = self.param("bias", zeros, self.features)
        named = "attention_kernel" if {"heads", "shared_head"} & set(axes) else "kernel"
        multiply = functools.partial(
            product,
            kernel=kernel,
            num_contracted=n,
            dtype=jnp.float32 if self.float32_output else self.dtype,
            precision=self.precision,
            weight=gradients.weight(axes, named),
        )

        def affine(x: jax.Array) -> jax.Array:
            y = multiply(x)
            return y if bias is None else y + gradients.broadcast(bias, y.shape, y.dtype)

        draw = functools.partial(self.make_rng, "dropout") if self.has_rng("dropout") else None
        parts = Affine(kernel, bias, multiply, draw)
        adapted: Callable[[jax.Array], jax.Array] = affine
        for adapter, leaves in declared.adapters:
            adapted = functools.partial(adapter.apply, leaves, inner=adapted, affine=parts)
        return adapted(x.astype(self.dtype))
