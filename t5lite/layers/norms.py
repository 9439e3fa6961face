"""Normalisation layers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from t5lite.layers.spec import Spec


class NormSpec(Spec):
    """The base of normalisation layers; subclass it for your own."""

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        """Returns the module, whose output has `dtype`; `axis` is the normalised axis's name."""
        raise NotImplementedError(f"{type(self).__name__}.make")


@dataclasses.dataclass(frozen=True)
class RMSNormSpec(NormSpec):
    """Root-mean-square normalisation with a scale and no bias.

    Args:
      epsilon: added to the mean square.
      unit_offset: whether the scale is 1 plus the parameter, as in Gemma.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = 1e-6
    unit_offset: bool = False

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        return RMSNorm(self, dtype, axis)


@dataclasses.dataclass(frozen=True)
class LayerNormSpec(NormSpec):
    """Normalisation to mean 0 and variance 1, with a scale and an optional bias.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_bias: bool = True

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        return LayerNorm(self, dtype, axis)


class RMSNorm(nn.Module):
    spec: RMSNormSpec
    dtype: jnp.dtype
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        init = nn.initializers.zeros if self.spec.unit_offset else nn.initializers.ones
        scale = _vector(self, "scale", init, x)
        if self.spec.unit_offset:
            scale = scale + 1.0
        return rms_norm(x, scale, epsilon=self.spec.epsilon).astype(self.dtype)


class LayerNorm(nn.Module):
    spec: LayerNormSpec
    dtype: jnp.dtype
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        scale = _vector(self, "scale", nn.initializers.ones, x)
        bias = _vector(self, "bias", nn.initializers.zeros, x) if self.spec.use_bias else None
        return layer_norm(x, scale, bias, epsilon=self.spec.epsilon).astype(self.dtype)


def _vector(module: Any, name: str, init: nn.initializers.Initializer, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(init, (module.axis,))
    return module.param(name, init, x.shape[-1:]).astype(jnp.float32)


def layer_norm(
    x: Float[Array, "*batch embed"],
    scale: Float32[Array, " embed"],
    bias: Float32[Array, " embed"] | None,
    *,
    epsilon: float,
) -> Float32[Array, "*batch embed"]:
    """Normalises `x` over the last axis, in float32; `epsilon` is added to the variance."""
    x = x.astype(jnp.float32)
    x = rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), scale, epsilon=epsilon)
    return x if bias is None else x + jnp.broadcast_to(bias, x.shape)


def rms_norm(
    x: Float[Array, "*batch embed"], scale: Float32[Array, " embed"], *, epsilon: float
) -> Float32[Array, "*batch embed"]:
    """Divides `x` by the root of its mean square over the last axis plus `epsilon`, in float32."""
    x = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + jnp.float32(epsilon))
    return x * inverse * jnp.broadcast_to(scale, x.shape)
