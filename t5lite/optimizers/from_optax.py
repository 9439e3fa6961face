"""Optax in float32, and any Optax optimizer with a learning rate that training can log."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5lite.errors import InputError
from t5lite.optimizers.checks import Schedule, check_optimizer


@dataclasses.dataclass(frozen=True)
class FromOptax:
    """Calls `make(learning_rate)` and runs the result in float32 under standard type promotion.

    `FromOptax(optax.adabelief, 1e-3)`, or in gin, where other arguments are bound on the function:

        FromOptax.make = @optax.adabelief
        FromOptax.learning_rate = 1e-3
        optax.adabelief.b2 = 0.99

    A bare `optax.GradientTransformation` can be given to the train step too; its learning rate is
    then not logged.

    Args:
      make: function from a learning rate (number or schedule) to a transformation.
      learning_rate: number >= 0, or a schedule.
    """

    make: Callable[[Any], optax.GradientTransformation]
    learning_rate: float | Schedule

    def __post_init__(self) -> None:
        check_optimizer(self)
        if not callable(self.make):
            raise InputError(
                f"FromOptax.make = {self.make!r}: must be a function of the learning rate, "
                "e.g. optax.adabelief without brackets",
                field="FromOptax.make",
            )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        del axes, shapes
        return in_float32(self.make(self.learning_rate))


def in_float32(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a transformation so that its state and arithmetic are float32.

    Gradients and parameters are cast to float32, updates to the parameters' dtype, under standard
    promotion, as some of Optax's transformations mix dtypes (AdamW's bias correction, schedules).
    """
    transformation = optax.with_extra_args_support(transformation)

    def init(params: optax.Params) -> optax.OptState:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return transformation.init(_float32(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else params
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            params = None if params is None else _float32(params)
            updates, state = transformation.update(_float32(updates), state, params, **extra)
            return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, like), state

    return optax.GradientTransformationExtraArgs(init, update)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
