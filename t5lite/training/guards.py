"""Guards that skip updates: loss spikes, and gradients that overflow float16.

Each keeps scalars in `TrainState.extra`, on the device: every process reaches the same verdict.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.errors import check_fields

Tree = Any
# Spikes in a row after which the loss counts as a new level: the data changed for good.
_NEW_LEVEL = 10
_LARGEST_SCALE = 2.0**31


@dataclasses.dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling: the largest scale that does not overflow float16.

    The gradient of the scaled loss is divided by the scale in float32 before anything else sees it.
    If it is not finite, the update is skipped and the scale falls.

    Args:
      initial: first scale, at least `minimum`; powers of two lose no digits.
      growth_steps: finite gradients in a row before it grows, at least 1.
      growth: factor of growth, above 1.
      backoff: factor after a non-finite gradient, in (0, 1).
      minimum: smallest scale, above 0; a non-finite gradient at this one is a NaN like any other,
        see `Update.on_nan`.
    Raises: InputError if a field is out of range.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, §3.2; the defaults are those of NVIDIA's
      Apex but for the first scale.
    """

    initial: float = 2.0**15
    growth_steps: int = 2000
    growth: float = 2.0
    backoff: float = 0.5
    minimum: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, minimum=f"number in (0, {_LARGEST_SCALE:.0f}]")
        check_fields(
            self,
            initial=f"number in [{self.minimum}, {_LARGEST_SCALE:.0f}]",
            growth="number in (1, inf)",
            backoff="number in (0, 1)",
            growth_steps="integer in [1, inf)",
        )

    def start(self) -> Tree:
        """Returns the first `scale` (float32) and `good_steps` (int32) since it last changed."""
        return {"scale": jnp.float32(self.initial), "good_steps": jnp.int32(0)}

    def after(self, state: Tree, finite: jax.Array) -> Tree:
        """Returns the state after a step, by whether its gradient was finite (bool scalar)."""
        good_steps = jnp.where(finite, state["good_steps"] + 1, 0)
        grows = good_steps >= self.growth_steps
        factor = jnp.where(finite, jnp.where(grows, self.growth, 1.0), self.backoff)
        scale = jnp.clip(state["scale"] * factor, self.minimum, _LARGEST_SCALE)
        return {"scale": scale, "good_steps": jnp.where(grows, 0, good_steps)}


def spike_start() -> Tree:
    """Returns the loss's running `mean` and `variance` (float32), and of how many steps (int32)."""
    zero = jnp.float32(0)
    return {"mean": zero, "variance": zero, "count": jnp.int32(0), "in_a_row": jnp.int32(0)}


def is_spike(state: Tree, loss: jax.Array, *, threshold: float, warmup_steps: int) -> jax.Array:
    """Returns whether a finite loss (float32 scalar) is far above those before it.

    That is `threshold` standard deviations above the mean in `state`, once it holds `warmup_steps`.
    """
    limit = state["mean"] + threshold * jnp.sqrt(state["variance"])
    warmed_up = state["count"] >= warmup_steps
    return warmed_up & (loss > limit) & (state["in_a_row"] < _NEW_LEVEL)


def after_loss(
    state: Tree, loss: jax.Array, *, finite: jax.Array, spike: jax.Array, decay: float
) -> Tree:
    """Returns the statistics with one more loss, unless it is a spike or non-finite.

    The mean is exponential after its first steps, which have equal weights. A loss that ends a row
    of `_NEW_LEVEL` spikes is a new level, and the statistics restart with it.
    """
    restart = finite & ~spike & (state["in_a_row"] >= _NEW_LEVEL)
    old = jax.tree.map(lambda zero, old: jnp.where(restart, zero, old), spike_start(), state)
    count = old["count"] + 1
    weight = jnp.maximum(1 - decay, 1 / count.astype(jnp.float32))
    # 0 · NaN is NaN: a non-finite loss must not enter, even into a branch that is not selected.
    deviation = jnp.where(finite, loss, old["mean"]) - old["mean"]
    seen = {
        "mean": old["mean"] + weight * deviation,
        "variance": (1 - weight) * (old["variance"] + weight * jnp.square(deviation)),
        "count": count,
        "in_a_row": jnp.int32(0),
    }
    skipped = state | {"in_a_row": state["in_a_row"] + spike.astype(jnp.int32)}
    return jax.tree.map(lambda new, old: jnp.where(finite & ~spike, new, old), seen, skipped)
