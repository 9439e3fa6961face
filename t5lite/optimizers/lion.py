"""Lion."""

import dataclasses
from typing import Any

import optax

from t5lite.optimizers.checks import Schedule, check_optimizer
from t5lite.optimizers.from_optax import in_float32
from t5lite.optimizers.masks import MATRICES, DecayMask


@dataclasses.dataclass(frozen=True)
class Lion:
    """Sign of an interpolated momentum, with decoupled weight decay: one moment instead of two.

    As every coordinate moves by the learning rate, it should be 3 to 10 times smaller than AdamW's,
    and `weight_decay` as many times larger.

    Args:
      learning_rate: number >= 0, or a schedule.
      b1: weight of the momentum in the update, in [0, 1).
      b2: decay of the momentum, in [0, 1).
      weight_decay: >= 0; a step subtracts `learning_rate * weight_decay * parameter`.
      decay_mask: of weight decay, matrices by default.
      mu_dtype: of the momentum, float32 or bfloat16.

    Source: Chen et al. 2023, arXiv:2302.06675.
    """

    learning_rate: float | Schedule
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.1
    decay_mask: DecayMask = MATRICES
    mu_dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_optimizer(
            self,
            b1="number in [0, 1)",
            b2="number in [0, 1)",
            weight_decay="number in [0, inf)",
        )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        return in_float32(
            optax.lion(
                self.learning_rate,
                b1=self.b1,
                b2=self.b2,
                mu_dtype=self.mu_dtype,
                weight_decay=self.weight_decay,
                mask=self.decay_mask(shapes, axes),
            )
        )
