"""Rotary positions: queries and keys are turned by an angle that grows with their position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.layers.spec import Spec


@dataclasses.dataclass(frozen=True)
class RotarySpec(Spec):
    """Rotation of each pair of a head's features by `position * theta**(-2i / head_dim)`.

    Args:
      theta: the slowest pair turns by about one radian in `theta` positions.

    Source: Su et al. 2021, arXiv:2104.09864, §3.2.2.
    """

    theta: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.theta > 1, "theta", "above 1")


def rotate(x: jax.Array, positions: jax.Array, spec: RotarySpec) -> jax.Array:
    """Turns queries or keys; their dot products then depend on distances alone.

    Feature i is paired with feature i + kv / 2, as in LLaMA's published weights.

    Args:
      x: `[batch, length, heads, kv]`, kv even.
      positions: `[batch or 1, length]` int32.
      spec: the frequencies.

    Returns:
      The shape and dtype of `x`; angles are float32.
    """
    half = x.shape[-1] // 2
    frequencies = np.float32(spec.theta) ** (-np.arange(half, dtype=np.float32) / half)
    angles = (
        positions.astype(jnp.float32)[:, :, None, None] * jnp.asarray(frequencies)[None, None, None]
    )
    shape = (*x.shape[:-1], half)
    sin, cos = (jnp.broadcast_to(fn(angles), shape) for fn in (jnp.sin, jnp.cos))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
