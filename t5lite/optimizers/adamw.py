"""AdamW."""

import dataclasses
from typing import Any

import optax

from t5lite.optimizers.checks import Schedule, check_optimizer
from t5lite.optimizers.from_optax import in_float32
from t5lite.optimizers.masks import MATRICES, DecayMask


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay.

    Args:
      learning_rate: number >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      epsilon: added to the root of the second moment, > 0.
      weight_decay: >= 0; a step subtracts `learning_rate * weight_decay * parameter`.
      decay_mask: of weight decay, matrices by default.
      mu_dtype: of the first moment, float32 or bfloat16; the second is always float32.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    learning_rate: float | Schedule
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay_mask: DecayMask = MATRICES
    mu_dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_optimizer(
            self,
            b1="number in [0, 1)",
            b2="number in [0, 1)",
            epsilon="number in (0, inf)",
            weight_decay="number in [0, inf)",
        )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        return in_float32(
            optax.adamw(
                self.learning_rate,
                b1=self.b1,
                b2=self.b2,
                eps=self.epsilon,
                mu_dtype=self.mu_dtype,
                weight_decay=self.weight_decay,
                mask=self.decay_mask(shapes, axes),
            )
        )
