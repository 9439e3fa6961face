"""Normalisation layers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from t5lite.layers.spec import Spec


class NormSpec(Spec):
    """Any normalisation layer; subclass it for one of your own."""

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        """Returns the module, whose output has `dtype`; `axis` is the normalised axis's name."""
        raise NotImplementedError(f"{type(self).__name__}.make")


@dataclasses.dataclass(frozen=True)
class RMSNormSpec(NormSpec):
    """Root-mean-square normalisation with a scale and no bias.

    Args:
      epsilon: added to the mean square.
      unit_offset: whether the parameter is what the scale is above 1, as in Gemma.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = 1e-6
    unit_offset: bool = False

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        """Returns the module, whose output has `dtype`; `axis` is the normalised axis's name."""
        return RMSNorm(self.epsilon, self.unit_offset, dtype, axis)


@dataclasses.dataclass(frozen=True)
class LayerNormSpec(NormSpec):
    """Normalisation to mean 0 and variance 1, with a scale and, if asked for, a bias.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_bias: bool = True

    def make(self, dtype: jnp.dtype, *, axis: str = "embed") -> nn.Module:
        """Returns the module, whose output has `dtype`; `axis` is the normalised axis's name."""
        return LayerNorm(self.epsilon, self.use_bias, dtype, axis)


class RMSNorm(nn.Module):
    epsilon: float
    unit_offset: bool
    dtype: jnp.dtype
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale: Any = self.param(
            "scale", nn.with_logical_partitioning(init, (self.axis,)), x.shape[-1:]
        )
        scale = scale.astype(jnp.float32)
        if self.unit_offset:
            scale = scale + 1.0
        return rms_norm(x, scale, epsilon=self.epsilon).astype(self.dtype)


class LayerNorm(nn.Module):
    epsilon: float
    use_bias: bool
    dtype: jnp.dtype
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        def vector(name: str, init: nn.initializers.Initializer) -> Any:
            return self.param(name, nn.with_logical_partitioning(init, (self.axis,)), x.shape[-1:])

        scale = vector("scale", nn.initializers.ones).astype(jnp.float32)
        bias = vector("bias", nn.initializers.zeros).astype(jnp.float32) if self.use_bias else None
        return layer_norm(x, scale, bias, epsilon=self.epsilon).astype(self.dtype)


def layer_norm(
    x: Float[Array, "*batch embed"],
    scale: Float32[Array, " embed"],
    bias: Float32[Array, " embed"] | None,
    *,
    epsilon: float,
) -> Float32[Array, "*batch embed"]:
    """Normalises `x` over the last axis, in float32.

    Args:
      x: `[..., embed]`, any float dtype.
      scale: `[embed]` float32.
      bias: `[embed]` float32, or None.
      epsilon: added to the variance.

    Returns:
      `[..., embed]` float32.
    """
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + jnp.float32(epsilon))
    x = x * inverse * jnp.broadcast_to(scale, x.shape)
    return x if bias is None else x + jnp.broadcast_to(bias, x.shape)


def rms_norm(
    x: Float[Array, "*batch embed"], scale: Float32[Array, " embed"], *, epsilon: float
) -> Float32[Array, "*batch embed"]:
    """Divides `x` by the root of its mean square over the last axis, in float32.

    Args:
      x: `[..., embed]`, any float dtype.
      scale: `[embed]` float32.
      epsilon: added to the mean square.

    Returns:
      `[..., embed]` float32.
    """
    x = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + jnp.float32(epsilon))
    return x * inverse * jnp.broadcast_to(scale, x.shape)
