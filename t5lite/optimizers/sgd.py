"""Stochastic gradient descent."""

import dataclasses
from typing import Any

import optax

from t5lite.errors import InputError
from t5lite.optimizers.checks import Schedule, check_optimizer
from t5lite.optimizers.from_optax import in_float32


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent with optional momentum.

    Args:
      learning_rate: number >= 0, or a schedule.
      momentum: decay of the sum of past gradients, in [0, 1); 0 keeps no state for it.
      nesterov: look ahead along the momentum; needs one.
      mu_dtype: of the momentum, float32 or bfloat16.

    Source: Sutskever et al. 2013, proceedings.mlr.press/v28/sutskever13.
    """

    learning_rate: float | Schedule
    momentum: float = 0.0
    nesterov: bool = False
    mu_dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_optimizer(self, momentum="number in [0, 1)", nesterov=bool)
        if self.nesterov and not self.momentum:
            raise InputError(
                "SGD.nesterov = True: needs a momentum, e.g. SGD.momentum = 0.9",
                field="SGD.nesterov",
            )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        del axes, shapes
        return in_float32(
            optax.sgd(
                self.learning_rate,
                momentum=self.momentum or None,
                nesterov=self.nesterov,
                accumulator_dtype=self.mu_dtype,
            )
        )
