"""Learning-rate schedules as a type, and the checks that all optimizers share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.errors import InputError, check_fields

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""Step (0-based, int32, may be traced) to learning rate (float32 scalar)."""


def check_optimizer(optimizer: Any, **rules: Any) -> None:
    """Raises an InputError for an invalid `learning_rate`, `mu_dtype` or field in `rules`."""
    name = type(optimizer).__name__
    if not callable(optimizer.learning_rate):
        try:
            check_fields(optimizer, learning_rate="number in [0, inf)")
        except InputError as error:
            raise InputError(
                f"{error}, or a schedule: a function from step to learning rate", field=error.field
            ) from None
    dtype = getattr(optimizer, "mu_dtype", "float32")
    # NumPy would read None as float64.
    if dtype is None or dtype not in (jnp.float32, jnp.bfloat16, "float32", "bfloat16"):
        raise InputError(
            f"{name}.mu_dtype = {dtype!r}: must be 'float32' or 'bfloat16'",
            field=f"{name}.mu_dtype",
        )
    check_fields(optimizer, **rules)
