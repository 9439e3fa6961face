"""Optimizers and learning-rate schedules.

An optimizer is a frozen dataclass with a `learning_rate` (number or schedule), callable as
`make(axes, shapes) -> optax.GradientTransformation` with the trees of the trained parameters'
logical axis names and shapes. If shapes alone cannot name its state (Adafactor's), it also has
`state_axes(axes, shapes) -> state tree of PartitionSpec`.

Global-norm clipping, parameter averaging and gradient accumulation are the train step's.
"""

from t5lite.optimizers import schedules
from t5lite.optimizers.adafactor import Adafactor, AdafactorState
from t5lite.optimizers.adamw import AdamW
from t5lite.optimizers.adamw_scale import AdamWScale
from t5lite.optimizers.checks import Schedule
from t5lite.optimizers.from_optax import FromOptax
from t5lite.optimizers.lion import Lion
from t5lite.optimizers.masks import DecayMask
from t5lite.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adafactor",
    "AdafactorState",
    "AdamW",
    "AdamWScale",
    "DecayMask",
    "FromOptax",
    "Lion",
    "Schedule",
    "schedules",
]
