"""Dropout and stochastic depth as functions of a key, for kernels and scans."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Drops elements at a rate in (0, 1) and scales up the others."""

    key: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        mask = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(mask, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def fold_in(self, index: jax.Array) -> "Dropout":
        """Returns the dropout of part `index` of a whole."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, index))


def drop_residual(
    update: Float[Array, " batch *rest"], key: jax.Array, rate: Float32[Array, ""]
) -> Float[Array, " batch *rest"]:
    """Drops a sublayer's update for each example with a probability, and scales up the others.

    Source: Huang et al. 2016, arXiv:1603.09382, §3.
    """
    shape = (update.shape[0],) + (1,) * (update.ndim - 1)
    mask = jax.random.uniform(key, shape) >= rate
    scaled = update.astype(jnp.float32) / (1 - rate)
    return jnp.where(mask, scaled, jnp.float32(0)).astype(update.dtype)
