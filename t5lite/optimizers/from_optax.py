"""Any Optax optimizer, with a learning rate that the training loop can log."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from t5lite.errors import InputError
from t5lite.optimizers.checks import Schedule, require_rate
from t5lite.optimizers.float32 import in_float32


@dataclasses.dataclass(frozen=True)
class FromOptax:
    """Calls `make(learning_rate)` and runs the result in float32 under standard type promotion.

    `FromOptax(optax.adabelief, 1e-3)`, or in gin, where other arguments are bound on the function:

        FromOptax.make = @optax.adabelief
        FromOptax.learning_rate = 1e-3
        optax.adabelief.b2 = 0.99

    A bare `optax.GradientTransformation` can be given to the train step without this; its learning
    rate is then not logged.

    Args:
      make: function from a learning rate (number or schedule) to a transformation.
      learning_rate: number >= 0, or a schedule.
    """

    make: Callable[[Any], optax.GradientTransformation]
    learning_rate: float | Schedule

    def __post_init__(self) -> None:
        require_rate("FromOptax.learning_rate", self.learning_rate)
        if not callable(self.make):
            raise InputError(
                f"FromOptax.make = {self.make!r}: must be a function of the learning rate,"
                " e.g. optax.adabelief without brackets",
                field="FromOptax.make",
            )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        """Returns the transformation, the same for all axes and shapes."""
        del axes, shapes
        return in_float32(self.make(self.learning_rate))
