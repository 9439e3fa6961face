"""AdamW."""

import dataclasses
from typing import Any

import optax

from t5lite.optimizers.checks import Schedule, require_dtype, require_number, require_rate
from t5lite.optimizers.float32 import in_float32
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
      decay_mask: what it acts on, matrices by default.
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
        require_rate("AdamW.learning_rate", self.learning_rate)
        require_number("AdamW.b1", self.b1, "[0, 1)")
        require_number("AdamW.b2", self.b2, "[0, 1)")
        require_number("AdamW.epsilon", self.epsilon, "(0, inf)")
        require_number("AdamW.weight_decay", self.weight_decay, "[0, inf)")
        require_dtype("AdamW.mu_dtype", self.mu_dtype)

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        """Returns the transformation of parameters with these logical axis names and shapes."""
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
