"""Normalisation layers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from t5lite.layers.spec import Spec


class NormSpec(Spec):
    """Any normalisation layer; subclass it for one of your own."""

    def make(self, dtype: jnp.dtype) -> nn.Module:
        """Returns the module, whose output has `dtype`."""
        raise NotImplementedError(f"{type(self).__name__}.make")


@dataclasses.dataclass(frozen=True)
class RMSNormSpec(NormSpec):
    """Root-mean-square normalisation with a scale and no bias.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = 1e-6

    def make(self, dtype: jnp.dtype) -> nn.Module:
        """Returns the module, whose output has `dtype`."""
        return RMSNorm(self.epsilon, dtype)


class RMSNorm(nn.Module):
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale: Any = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), x.shape[-1:]
        )
        return rms_norm(x, scale, epsilon=self.epsilon).astype(self.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float) -> jax.Array:
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
    return jnp.einsum("...e,e->...e", x * inverse, scale)
