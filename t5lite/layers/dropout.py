"""Random omission as plain functions of a key, so that kernels and scans can call them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Drops elements at a rate and scales up the others.

    Args:
      key: a PRNG key.
      rate: in (0, 1).
    """

    key: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(self.key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def fold_in(self, index: jax.Array) -> "Dropout":
        """Returns the dropout of part `index` of a whole."""
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, index))


def drop_residual(
    update: Float[Array, " batch *rest"], key: jax.Array, rate: Float32[Array, ""]
) -> Float[Array, " batch *rest"]:
    """Leaves out a sublayer for some examples, and scales it up for the others.

    Args:
      update: `[batch, …]`, what a sublayer adds to the residual stream.
      key: a PRNG key.
      rate: float32 scalar in [0, 1), the probability for each example.

    Returns:
      The same shape, its expectation that of `update`.

    Source: Huang et al. 2016, arXiv:1603.09382, §3.
    """
    shape = (update.shape[0],) + (1,) * (update.ndim - 1)
    kept = jax.random.uniform(key, shape) >= rate
    scaled = update.astype(jnp.float32) / (1 - rate)
    return jnp.where(kept, scaled, jnp.float32(0)).astype(update.dtype)
