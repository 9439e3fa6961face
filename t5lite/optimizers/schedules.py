"""Learning-rate schedules: each is a function that returns `step -> float32 scalar`.

Steps, a Python int or an int32 scalar, traced or not, are 0-based: the last update uses step
`total_steps - 1`. Every warm-up is T5X's: the rate is multiplied by `min(1, step / warmup_steps)`,
so step 0 gets exactly 0, step `warmup_steps` is the first to get the full rate, and
`warmup_steps=0` means none. After `total_steps` the rate stays at its last value.

Resuming with a higher `total_steps` raises `linear` and `cosine` at every step, so a finished run
continues with a jump, which `train` reports. A run that may be extended needs `wsd` (whose rate
before its decay does not depend on `total_steps`), `constant` or `rsqrt`.

An argument out of range raises an InputError.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5lite.errors import InputError, check_value
from t5lite.optimizers.checks import Schedule


def constant(*, peak: float, warmup_steps: int = 0) -> Schedule:
    """Holds `peak` after the warm-up; arguments as for `linear`."""
    _check("constant", peak=peak, warmup_steps=warmup_steps)
    return _warmed_up(lambda step: peak, warmup_steps)


def linear(*, peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Falls linearly from `peak` at step `warmup_steps` to `end` at `total_steps`.

    Args:
      peak: highest learning rate, >= 0.
      total_steps: of the run, above `warmup_steps`.
      warmup_steps: of linear climb from 0, >= 0.
      end: learning rate from `total_steps` on, >= 0.
    """
    _check("linear", peak=peak, warmup_steps=warmup_steps, end=end)
    _check_total("linear", total_steps, warmup_steps=warmup_steps)

    def rate(step: jax.Array) -> jax.Array:
        return peak + (end - peak) * _progress(step, warmup_steps, total_steps)

    return _warmed_up(rate, warmup_steps)


def cosine(*, peak: float, total_steps: int, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Falls along half a cosine; arguments as for `linear`.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """
    _check("cosine", peak=peak, warmup_steps=warmup_steps, end=end)
    _check_total("cosine", total_steps, warmup_steps=warmup_steps)

    def rate(step: jax.Array) -> jax.Array:
        angle = math.pi * _progress(step, warmup_steps, total_steps)
        return end + (peak - end) * 0.5 * (1.0 + jnp.cos(angle))

    return _warmed_up(rate, warmup_steps)


def rsqrt(*, base: float = 1.0, warmup_steps: int = 10_000, climb: bool = True) -> Schedule:
    """Returns `base / sqrt(max(step, warmup_steps))`, T5's schedule, which needs no total.

    T5X raises every rate of its `constant * linear_warmup * rsqrt_decay` (`climb`) to at least 1e-8
    (its step 0 has that, ours 0).

    Args:
      base: numerator, >= 0; the highest learning rate is `base / sqrt(warmup_steps)`.
      warmup_steps: where the decay begins, >= 1.
      climb: climb linearly from 0 until then (T5X) rather than hold the highest rate (T5's paper).

    Source: Raffel et al. 2020, arXiv:1910.10683, §3.1.2.
    """
    check_value("rsqrt.base", base, "number in [0, inf)")
    check_value("rsqrt.warmup_steps", warmup_steps, "integer in [1, inf)")
    check_value("rsqrt.climb", climb, bool)

    def rate(step: jax.Array) -> jax.Array:
        return base / jnp.sqrt(jnp.maximum(step, float(warmup_steps)))

    return _warmed_up(rate, warmup_steps if climb else 0)


def wsd(
    *, peak: float, total_steps: int, decay_steps: int, warmup_steps: int = 0, end: float = 0.0
) -> Schedule:
    """Warms up, stays at `peak`, then falls linearly to `end` over the last `decay_steps`.

    A run can be extended, or branched into several decays, from any checkpoint of the stable phase.
    The other arguments are as for `linear`.

    Args:
      total_steps: of the run, at least `warmup_steps + decay_steps`.
      decay_steps: of linear fall, >= 1; step `total_steps - decay_steps` is the last at `peak`.

    Source: Hu et al. 2024, arXiv:2404.06395, §4; Hägele et al. 2024, arXiv:2405.18392.
    """
    _check("wsd", peak=peak, warmup_steps=warmup_steps, end=end)
    check_value("wsd.decay_steps", decay_steps, "integer in [1, inf)")
    _check_total("wsd", total_steps, warmup_steps=warmup_steps, decay_steps=decay_steps)

    def rate(step: jax.Array) -> jax.Array:
        return peak + (end - peak) * _progress(step, total_steps - decay_steps, total_steps)

    return _warmed_up(rate, warmup_steps)


def _warmed_up(rate: Callable[[jax.Array], jax.Array | float], warmup_steps: int) -> Schedule:
    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        climb = jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0
        return jnp.asarray(climb * rate(step), jnp.float32)

    return schedule


def _progress(step: jax.Array, start: int, stop: int) -> jax.Array:
    return jnp.clip((step - start) / (stop - start), 0.0, 1.0)


def _check(name: str, *, peak: float, warmup_steps: int, end: float = 0.0) -> None:
    check_value(f"{name}.peak", peak, "number in [0, inf)")
    check_value(f"{name}.end", end, "number in [0, inf)")
    check_value(f"{name}.warmup_steps", warmup_steps, "integer in [0, inf)")


def _check_total(name: str, total_steps: int, **phases: int) -> None:
    check_value(f"{name}.total_steps", total_steps, "integer in [1, inf)")
    # A schedule without `decay_steps` needs at least one step to fall in.
    minimum = sum(phases.values()) + ("decay_steps" not in phases)
    if total_steps < minimum:
        terms = " + ".join(f"{field} ({value})" for field, value in phases.items())
        largest = max(phases, key=lambda field: phases[field])
        shorter = f"t5lite.optimizers.schedules.{name}.{largest} = {total_steps // 10}"
        raise InputError(
            f"{name}.total_steps = {total_steps}: must be at least {minimum}, as {terms} come first"
            f"\n  train for longer (TRAIN_STEPS), or set {shorter}",
            field=f"{name}.total_steps",
        )
