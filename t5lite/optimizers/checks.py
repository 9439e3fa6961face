"""Checks of what a user set: gin passes on whatever it reads, so every value is looked at."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.errors import InputError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""Step (0-based, int32, may be traced) to learning rate (float32 scalar)."""

_INTERVALS: dict[str, Callable[[float], bool]] = {
    "[0, 1)": lambda x: 0 <= x < 1,
    "[0, 1]": lambda x: 0 <= x <= 1,
    "[0, inf)": lambda x: 0 <= x < float("inf"),
    "(0, inf)": lambda x: 0 < x < float("inf"),
}


def require_number(name: str, value: object, interval: str) -> None:
    """Raises an InputError unless `value` is a number in `interval`, e.g. `"[0, 1)"`."""
    if (
        not isinstance(value, int | float | np.integer | np.floating)
        or isinstance(value, bool)
        or not _INTERVALS[interval](float(value))
    ):
        raise InputError(f"{name} = {value!r}: must be a number in {interval}", field=name)


def require_count(name: str, value: object, *, minimum: int = 0) -> None:
    """Raises an InputError unless `value` is a whole number of at least `minimum`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < minimum:
        hint = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise InputError(
            f"{name} = {value!r}: must be a whole number >= {minimum}{hint}", field=name
        )


def require_flag(name: str, value: object) -> None:
    """Raises an InputError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} = {value!r}: must be True or False", field=name)


def require_rate(name: str, value: object) -> None:
    """Raises an InputError unless `value` is a learning rate: a number >= 0 or a schedule."""
    if not callable(value):
        try:
            require_number(name, value, "[0, inf)")
        except InputError:
            raise InputError(
                f"{name} = {value!r}: must be a number in [0, inf) or a schedule,"
                " a function from step to learning rate",
                field=name,
            ) from None


def require_dtype(name: str, value: object) -> None:
    """Raises an InputError unless `value` names float32 or bfloat16."""
    # None would be float64 to NumPy.
    if value is None or value not in (jnp.float32, jnp.bfloat16, "float32", "bfloat16"):
        raise InputError(f"{name} = {value!r}: must be 'float32' or 'bfloat16'", field=name)
