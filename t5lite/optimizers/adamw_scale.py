"""AdamW whose steps are relative to each matrix's size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5lite.optimizers.checks import Schedule, check_optimizer
from t5lite.optimizers.from_optax import in_float32
from t5lite.optimizers.masks import MATRICES, DecayMask
from t5lite.optimizers.matrices import MatrixView, matrix_views, rms


@dataclasses.dataclass(frozen=True)
class AdamWScale:
    """AdamW with Adafactor's parameter scale: updates are multiplied by each parameter's RMS.

    T5's initialisers give matrices very different sizes, and Adafactor, for which they were chosen,
    steps in proportion. This lets Adam train a T5: the update of every parameter, one layer at a
    time, is multiplied by `max(min_scale, rms(parameter))`. Weight decay is not.

    nanoT5's own code adds epsilon before the bias correction (which enlarges it during the first
    steps), and decays the parameter after the step, not before.

    Args:
      learning_rate: number >= 0, or a schedule; relative, so larger than AdamW's (nanoT5: 0.02).
      min_scale: smallest scale, > 0, so that parameters starting at zero can move.

    The other arguments are those of `AdamW`.

    Source: Nawrot 2023, nanoT5, arXiv:2309.02373.
    """

    learning_rate: float | Schedule
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6
    min_scale: float = 1e-3
    weight_decay: float = 0.0
    decay_mask: DecayMask = MATRICES
    mu_dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_optimizer(
            self,
            b1="number in [0, 1)",
            b2="number in [0, 1)",
            epsilon="number in (0, inf)",
            min_scale="number in (0, inf)",
            weight_decay="number in [0, inf)",
        )

    def __call__(self, axes: Any, shapes: Any) -> optax.GradientTransformationExtraArgs:
        return in_float32(
            optax.chain(
                optax.scale_by_adam(self.b1, self.b2, self.epsilon, mu_dtype=self.mu_dtype),
                _scale_by_parameter_rms(matrix_views(shapes, axes), self.min_scale),
                optax.add_decayed_weights(self.weight_decay, mask=self.decay_mask(shapes, axes)),
                optax.scale_by_learning_rate(self.learning_rate),
            )
        )


def _scale_by_parameter_rms(views: Any, min_scale: float) -> optax.GradientTransformation:
    def scaled(param: jax.Array, update: jax.Array, view: MatrixView) -> jax.Array:
        return update * jnp.maximum(rms(param, view), min_scale)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, params, updates, views))
